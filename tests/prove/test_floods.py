"""Floods from four connections harm no more than honest load does, cost no memory that grows, and end in time."""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from syncbeat.v1 import directory_service_pb2
from syncbeat_devtools.demo.processes import Process
from syncbeat_devtools.demo.stage import Stage
from syncbeat_server.clock import SystemClock
from tests.prove.floods import CONNECTIONS, floods

pytestmark = pytest.mark.prove

FLOOD_S, ROUNDS, PAUSE_S, WARM_S = 10.0, 3, 0.01, 0.5
KINDS = [name for name in floods("token") if name != "hints"]
MOST_TIMES = 3.0
NOISE_MS = 20.0  # what a machine with two cores adds to a p99 by itself, where three processes want them
MOST_GROWTH = 1.10
DRAIN_S = 5.0  # of the stage
BUSY_S = 2.0

Record = Callable[[str, dict[str, object]], None]


@asynccontextmanager
async def flooding(server: Process, token: str, kind: str, seconds: float) -> AsyncIterator[asyncio.subprocess.Process]:
    """For the block a flood is poured over a server."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.prove.floods", server.address, token, kind, str(seconds)),
        cwd=Path(__file__).parents[2],
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"pouring\n"
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def health_ms(server: Process) -> float:
    """The 99th percentile of what Health.Check takes beside a flood, asked again a moment after each answer."""
    clock, taken = SystemClock(), []
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        until = clock.monotonic() + FLOOD_S - 2 * WARM_S
        while clock.monotonic() < until:
            began = time.perf_counter()
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=60)
            taken.append((time.perf_counter() - began) * 1_000)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
            await clock.sleep(PAUSE_S)
    return statistics.quantiles([*taken, taken[-1]], n=100, method="inclusive")[98]


async def measured(server: Process, token: str, kind: str) -> tuple[float, int]:
    """The p99 of health checks beside a flood, and how many calls it was."""
    async with flooding(server, token, kind, FLOOD_S) as process:
        await SystemClock().sleep(WARM_S)
        p99_ms = await health_ms(server)
        output, _ = await process.communicate()
    return p99_ms, int(output)


@pytest.mark.timeout(900)
async def test_floods_harm_no_more_than_honest_load(stage: Stage, record: Record) -> None:
    server = await stage.start_server()
    token, memory = stage.user_token("ann"), psutil.Process(server.pid)
    async with stage.client(stage.identity.service_token, server) as backend:
        await backend.directory.RegisterDevice(
            directory_service_pb2.RegisterDeviceRequest(
                user_id="ann", device_id="phone", platform=directory_service_pb2.PLATFORM_ANDROID
            )
        )
    # Beside each kind once, as the machine's speed changes within minutes.
    honest_ms: dict[str, float] = {}
    figures: dict[str, dict[str, object]] = {}
    for kind in KINDS:
        honest_ms[kind], hints = await measured(server, token, "hints")
        rounds, resident = [], []
        for _ in range(ROUNDS):
            rounds.append(await measured(server, token, kind))
            resident.append(memory.memory_info().rss)
        figures[kind] = {
            "calls": [calls for _, calls in rounds],
            "health_p99_ms": [round(p99_ms, 1) for p99_ms, _ in rounds],
            "health_p99_ms_beside_hints": round(honest_ms[kind], 1),
            "hints": hints,
            "rss_mib": [round(octets / (1 << 20), 1) for octets in resident],
        }
    took_s: dict[str, float] = {}
    for kind in KINDS:
        ending = await stage.start_server()
        async with flooding(ending, token, kind, 60.0):
            await SystemClock().sleep(2.0)
            began = time.monotonic()
            assert await ending.stop() == 0
            took_s[kind] = round(time.monotonic() - began, 2)
        figures[kind]["seconds_to_end"] = took_s[kind]
    record("floods", {"connections": CONNECTIONS, "seconds": FLOOD_S, "drain_s": DRAIN_S, "floods": figures})
    for kind in KINDS:
        told = figures[kind]
        rounds_ms, resident_mib = told["health_p99_ms"], told["rss_mib"]
        assert isinstance(rounds_ms, list)
        assert isinstance(resident_mib, list)
        assert statistics.median(rounds_ms) <= MOST_TIMES * max(honest_ms.values()) + NOISE_MS, (kind, told)
        assert resident_mib[-1] <= MOST_GROWTH * resident_mib[0], (kind, told)
        assert took_s[kind] <= DRAIN_S + BUSY_S, kind
