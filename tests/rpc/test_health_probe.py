"""The health check of a container: where it asks, and that it finds a server there."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from syncbeat_server.rpc.health_probe import local_addresses
from tests.support.ports import free_port

pytestmark = pytest.mark.rpc


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
    socket = f"unix:{tmp_path / 'socket'}"
    async with serving(socket):
        status, _ = await asyncio.to_thread(healthcheck, "--address", socket, listen="[::]:0")
        assert status == 0
    port = free_port()
    proxy = {"http_proxy": "http://127.0.0.1:9", "no_proxy": ""}
    async with serving(f"127.0.0.1:{port}"):
        status, lines = await asyncio.to_thread(healthcheck, listen=f"0.0.0.0:{port}", **proxy)
        assert status == 0, lines


def test_health_probe_reports_each_address_and_refuses_a_foreign_port() -> None:
    port = free_port()
    status, lines = healthcheck(listen=f"[::]:{port}")
    assert (status, len(lines)) == (1, 2)
    assert all(line.endswith("is UNAVAILABLE") for line in lines)
    status, lines = healthcheck(listen="127.0.0.1:0")
    assert status == 1
    assert lines == ["syncbeat-server: SYNCBEAT_LISTEN: nobody knows the port it takes: name one, or use --address"]
