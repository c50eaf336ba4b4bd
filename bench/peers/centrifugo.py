"""Runs Centrifugo, and encodes its messages: publishes over its gRPC API, streams over its unidirectional gRPC."""

from __future__ import annotations

import json
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from bench.peers import tools

PUBLISH = "/centrifugal.centrifugo.api.CentrifugoApi/Publish"
CONSUME = "/centrifugal.centrifugo.unistream.CentrifugoUniStream/Consume"

_READY_S = 30.0
_END_S = 10.0
_HISTORY = {"history_size": 100, "history_ttl": "300s"}


@dataclass(frozen=True)
class RunningPeer:
    """A running Centrifugo: its process, the address of its API, and that of its streams."""

    pid: int
    api: str
    streams: str


@contextmanager
def running_centrifugo() -> Iterator[RunningPeer]:
    """Run it in memory, with a history of 100 publications a channel, for the block. Raises PeerAbsent."""
    executable = tools.centrifugo()
    with tempfile.TemporaryDirectory(prefix="syncbeat-bench-") as folder:
        http, api, streams = _free_ports(3)
        config = Path(folder, "config.json")
        config.write_text(json.dumps(_settings(http, api, streams)))
        process = subprocess.Popen(
            [str(executable), "--config", str(config)],
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            for port in (api, streams):
                _wait_until_open(process, port)
            yield RunningPeer(process.pid, f"127.0.0.1:{api}", f"127.0.0.1:{streams}")
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(_END_S)
            process.kill()
            process.wait()


def publish_request(channel: str, data: bytes) -> bytes:
    """Return a PublishRequest."""
    return _field(1, channel.encode()) + _field(2, data)


def consume_request(channel: str) -> bytes:
    """Return a ConnectRequest that subscribes to a channel."""
    return _field(3, _field(1, channel.encode()) + _field(2, b""))


def _settings(http: int, api: int, streams: int) -> dict[str, object]:
    return {
        "log": {"level": "error"},
        "http_server": {"address": "127.0.0.1", "port": http},
        "grpc_api": {"enabled": True, "address": "127.0.0.1", "port": api},
        "uni_grpc": {"enabled": True, "address": "127.0.0.1", "port": streams},
        "client": {"insecure": True, "allow_anonymous_connect_without_token": True},
        "channel": {"without_namespace": {**_HISTORY, "allow_subscribe_for_client": True}},
    }


def _field(number: int, content: bytes) -> bytes:
    # Of fewer than 128 bytes, or its length would take two.
    assert len(content) < 128
    return bytes((number << 3 | 2, len(content))) + content


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _wait_until_open(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + _READY_S
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
            return
        time.sleep(0.05)
    raise tools.PeerAbsent("centrifugo does not start")
