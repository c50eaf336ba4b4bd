"""Reconnect storms and idle streams, against a bare slot server with as many streams."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from statistics import median

import uvloop

from bench.figure import Better, Figure, Options, report_progress, round_value
from bench.processes import RunningProcess
from bench.stage import Cpu, migrated_stores, our_server
from bench.stream_client import Streams
from bench.stream_stage import add_watchers, slot_server, streams_to, watcher_tokens

_STORM, _IDLE = 5_000, 10_000
_IDLE_S = 60.0  # two heartbeats
_SETTLE_S = 8.0  # news of the last storm, as marks of presence
_MOST_ROUNDS = 5
_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Side:
    """A server with its streams, and the process of its database."""

    server: RunningProcess
    database_pid: int | None
    streams: Streams

    async def cpu_during(self, work: Callable[[], Awaitable[float]]) -> tuple[float, float, float]:
        """Return the result of `work`, and the seconds of CPU of server and database meanwhile."""
        before = Cpu.now(self.server.pid, self.database_pid)
        result = await work()
        return result, *Cpu.now(self.server.pid, self.database_pid).since(before)

    async def storm(self) -> float:
        """Lose all connections, and return the seconds until all streams are open again."""
        self.streams.abort()
        return await self.streams.open()


def storm(options: Options) -> Figure:
    """Measure seconds until all of 5,000 streams are open again whose connections were lost at once."""
    rounds = min(options.rounds, _MOST_ROUNDS)

    async def measure(ours: Side, baseline: Side) -> Figure:
        runs: list[list[float]] = []
        cpu_ms: list[list[float]] = []
        before = ours.streams.refused
        for number in range(1, rounds + 1):
            took: dict[int, tuple[float, float, float]] = {}
            for place, side in ((0, ours), (1, baseline)) if number % 2 else ((1, baseline), (0, ours)):
                await asyncio.sleep(_SETTLE_S)
                took[place] = await side.cpu_during(side.storm)
            runs.append([took[0][0], took[1][0]])
            cpu_ms.append([used_s / _STORM * 1e3 for used_s in (*took[0][1:], took[1][1])])
            report_progress(f"storm_5k_s: round {number}/{rounds}: {runs[-1]} s, CPU of a stream {cpu_ms[-1]} ms")
        mine, database, theirs = (round_value(median(column)) for column in zip(*cpu_ms, strict=True))
        return Figure(
            name="storm_5k_s",
            unit="s",
            better=Better.LESS,
            value=median(run[0] for run in runs),
            baseline=median(run[1] for run in runs),
            runs=runs,
            notes={
                "streams": _STORM,
                "cpu_ms_per_stream": mine,
                "database_cpu_ms_per_stream": database,
                "baseline_cpu_ms_per_stream": theirs,
                "told_to_come_later": ours.streams.delayed,
                "ended_without_a_delay": ours.streams.refused - before,
            },
        )

    return _with_streams(_STORM, measure)


def idle(_options: Options) -> Figure:
    """Measure the share of a core that 10,000 idle streams take, in percent."""

    async def measure(ours: Side, baseline: Side) -> Figure:
        shares = []
        for side in (ours, baseline):
            await asyncio.sleep(_SETTLE_S)
            _, used_s, database_s = await side.cpu_during(_wait)
            shares.append((used_s / _IDLE_S * 100, database_s / _IDLE_S * 100))
        return Figure(
            name="idle_10k_cpu_percent",
            unit="%",
            better=Better.LESS,
            value=shares[0][0],
            baseline=shares[1][0],
            runs=[[shares[0][0], shares[1][0]]],
            notes={"streams": _IDLE, "database_cpu_percent": round_value(shares[0][1])},
        )

    return _with_streams(_IDLE, measure)


async def _wait() -> float:
    await asyncio.sleep(_IDLE_S)
    return _IDLE_S


def _with_streams(size: int, measure: Callable[[Side, Side], Awaitable[Figure]]) -> Figure:
    async def run(server: RunningProcess, database_pid: int | None, bare: RunningProcess) -> Figure:
        tokens = watcher_tokens(size)
        ours = Side(server, database_pid, streams_to(server, tokens))
        baseline = Side(bare, None, streams_to(bare, tokens))
        async with asyncio.timeout(_TIMEOUT_S):
            for side in (ours, baseline):
                report_progress(f"{size} streams open after {await side.streams.open():.1f} s")
            try:
                return await measure(ours, baseline)
            finally:
                for side in (ours, baseline):
                    side.streams.abort()

    with migrated_stores() as stores:
        add_watchers(stores, size)
        with our_server(stores) as server, slot_server() as bare:
            return uvloop.run(run(server, stores.pids[0], bare))
