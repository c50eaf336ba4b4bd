"""The health check of a container: where it asks, and that it finds a server there."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import statistics
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from syncbeat_server.rpc.health_probe import local_addresses, probe
from tests.support.ports import free_port

pytestmark = pytest.mark.rpc


SETTINGS = bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
MESSAGE = bytes((0, 0, 0, 0, 2, 8))
"""A message of two octets, of which the number of the status is missing."""


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """A frame of HTTP/2."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


@pytest.mark.parametrize(
    ("listen", "asked"),
    [
        ("0.0.0.0:50051", ["127.0.0.1:50051"]),
        ("[::]:50051", ["[::1]:50051", "127.0.0.1:50051"]),
        ("[0:0:0:0:0:0:0:0]:1", ["[::1]:1", "127.0.0.1:1"]),
        (":::50051", ["[::1]:50051", "127.0.0.1:50051"]),
        ("[::1]:50051", ["[::1]:50051"]),
        ("127.0.0.2:50051", ["127.0.0.2:50051"]),
        ("[2001:db8::1]:50051", ["[2001:db8::1]:50051"]),
        ("sync.example:50051", ["sync.example:50051"]),
    ],
)
def test_health_probe_asks_the_listen_address(listen: str, asked: list[str]) -> None:
    assert local_addresses(listen) == asked


@asynccontextmanager
async def serving(address: str) -> AsyncIterator[None]:
    """A server that says that it serves, at this address alone."""
    servicer = health.aio.HealthServicer()
    await servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    server.add_insecure_port(address)
    await server.start()
    try:
        yield
    finally:
        await server.stop(0)


def healthcheck(*arguments: str, listen: str, **environment: str) -> tuple[int, list[str]]:
    done = subprocess.run(
        [sys.executable, "-m", "syncbeat_server.cli", "healthcheck", *arguments],
        env={**os.environ, "SYNCBEAT_LISTEN": listen, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, (done.stdout + done.stderr).splitlines()


@pytest.mark.parametrize("loopback", ["[::1]", "127.0.0.1"])
async def test_health_probe_finds_a_wildcard_listener_by_either_family(loopback: str) -> None:
    port = free_port()
    async with serving(f"{loopback}:{port}"):
        status, lines = await asyncio.to_thread(healthcheck, listen=f"[::]:{port}")
    assert (status, lines[-1]) == (0, f"syncbeat-server: {loopback}:{port} is SERVING")


async def test_health_probe_works_over_a_socket_and_past_a_proxy(tmp_path: Path) -> None:
    path = f"unix:{tmp_path / 'socket'}"
    async with serving(path):
        status, _ = await asyncio.to_thread(healthcheck, "--address", path, listen="[::]:0")
        assert status == 0
    port = free_port()
    proxy = {"http_proxy": "http://127.0.0.1:9", "no_proxy": ""}
    async with serving(f"127.0.0.1:{port}"):
        status, lines = await asyncio.to_thread(healthcheck, listen=f"0.0.0.0:{port}", **proxy)
        assert status == 0, lines


# What an orchestrator's check may cost, in seconds of CPU. With gRPC it was 0.6.
MOST_CPU_S = 0.15


async def test_health_probe_costs_little_cpu() -> None:
    port = free_port()
    costs = []
    async with serving(f"127.0.0.1:{port}"):
        for _ in range(5):  # the first one writes byte code, which the image has
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            status, _ = await asyncio.to_thread(healthcheck, listen=f"127.0.0.1:{port}")
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            costs.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
            assert status == 0
    assert statistics.median(costs) < MOST_CPU_S, costs


def test_health_probe_loads_few_modules() -> None:
    command = [sys.executable, "-EX", "importtime", "-m", "syncbeat_server.cli", "healthcheck", "--address", "[::1]:1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    ours = {name for name in loaded if name.startswith(("syncbeat_server.", "syncbeat_devtools"))}
    assert ours == {
        *("syncbeat_server.cli", "syncbeat_server.cli.main", "syncbeat_server.cli.healthcheck"),
        *("syncbeat_server.defaults", "syncbeat_server.errors", "syncbeat_server.ops", "syncbeat_server.ops.files"),
        *("syncbeat_server.ops.settings", "syncbeat_server.ops.settings.sources"),
        *("syncbeat_server.rpc", "syncbeat_server.rpc.health_probe"),
    }


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "UNAVAILABLE"),
        (b"", "UNAVAILABLE"),
        (bytes(9), "UNAVAILABLE"),  # no settings come first
        (SETTINGS + frame(7, 0, 0, bytes(8)), "UNAVAILABLE"),
        (SETTINGS + frame(3, 0, 1, bytes(4)), "UNAVAILABLE"),
        (SETTINGS + b"\xff\xff\xff" + bytes(6), "UNAVAILABLE"),
        (SETTINGS + frame(1, 5, 1, b"\x88"), "UNKNOWN"),  # an error: trailers alone
        (SETTINGS + frame(0, 1, 1, MESSAGE + b"\x02"), "NOT_SERVING"),
        (SETTINGS + frame(0, 1, 1, MESSAGE + b"\x63"), "UNKNOWN"),
        (SETTINGS + frame(4, 1, 0, b"") + frame(0, 9, 1, b"\x02" + MESSAGE + b"\x01" + bytes(2)), "SERVING"),
    ],
)
async def test_health_probe_reads_hostile_answers(answer: bytes, told: str) -> None:
    async def respond(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(respond, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        assert await asyncio.to_thread(probe, f"127.0.0.1:{port}", 5.0) == told


async def test_health_probe_gives_up_on_a_silent_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        assert await asyncio.to_thread(probe, f"127.0.0.1:{port}", 0.2) == "DEADLINE_EXCEEDED"


def test_health_probe_reads_its_two_settings_and_no_others(tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "listen").write_text(f"127.0.0.1:{port}")
    status, lines = healthcheck(listen="", SYNCBEAT_LISTEN_FILE=str(tmp_path / "listen"), SYNCBEAT_TYPO="1")
    assert (status, lines) == (1, [f"syncbeat-server: 127.0.0.1:{port} is UNAVAILABLE"])
    missing = str(tmp_path / "none.pem")
    status, lines = healthcheck(listen="127.0.0.1:1", SYNCBEAT_TLS_CERTIFICATE=missing)
    assert (status, lines) == (1, [f"syncbeat-server: SYNCBEAT_TLS_CERTIFICATE: there is no file {missing}"])


def test_health_probe_reports_each_address_and_refuses_a_foreign_port() -> None:
    port = free_port()
    status, lines = healthcheck(listen=f"[::]:{port}")
    assert (status, len(lines)) == (1, 2)
    assert all(line.endswith("is UNAVAILABLE") for line in lines)
    status, lines = healthcheck(listen="127.0.0.1:0")
    assert status == 1
    assert lines == ["syncbeat-server: SYNCBEAT_LISTEN: nobody knows the port it takes: name one, or use --address"]
