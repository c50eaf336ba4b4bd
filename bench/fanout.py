"""One publish to many open streams, against a bare slot server with as many, with hints asked for meanwhile."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from statistics import median

import uvloop

from bench.figure import Better, Figure, Options, report_progress
from bench.processes import RunningProcess
from bench.stage import GET_HINT, PUBLISH, SERVICE_TOKEN, Cpu, migrated_stores, our_server
from bench.stream_client import Streams, Unary, connect
from bench.stream_stage import SCOPE, add_watchers, slot_server, streams_to, watcher_tokens
from syncbeat.v1 import core_pb2
from syncbeat.v1 import sync_service_pb2 as pb

_PROBE_EVERY_S = 0.005
_REST_S = 6.0  # checkpoints follow news within 5 s
_TIMEOUT_S = 120.0
_MOST_ROUNDS = 7
_numbers = count(1)


@dataclass(frozen=True)
class Sent:
    """One publish: its p99 and rate, CPU of a message in microseconds, and the p99 of GetHint meanwhile."""

    p99_ms: float
    per_s: float
    cpu_us: float
    database_cpu_us: float
    hint_p99_ms: float


@dataclass
class Side:
    """A server, its open streams, and the connections of calls beside them."""

    server: RunningProcess
    database_pid: int | None
    streams: Streams
    publish: Unary
    hint: Unary
    sent: list[Sent] = field(default_factory=list)

    async def measure(self, size: int) -> None:
        """Publish once, and measure until every stream has it."""
        marker = f"page-{next(_numbers):06}".encode()
        change = core_pb2.NewChange(scope=SCOPE, key="state", merge_patch_json=f'{{"page":"{marker.decode()}"}}')
        request = pb.PublishChangesRequest(changes=[change]).SerializeToString()
        probes = asyncio.create_task(self._probe())
        before = Cpu.now(self.server.pid, self.database_pid)
        started = time.perf_counter()
        publishing: list[asyncio.Task[float]] = []
        arrived = await self.streams.receive(
            marker, lambda: publishing.append(asyncio.create_task(self.publish.call(request)))
        )
        used_s, database_s = Cpu.now(self.server.pid, self.database_pid).since(before)
        probes.cancel()
        await publishing[0]
        hints = await probes
        took = sorted(moment - started for moment in arrived)
        self.sent.append(
            Sent(
                p99_ms=_p99(took) * 1e3,
                per_s=size / took[-1],
                cpu_us=used_s / size * 1e6,
                database_cpu_us=database_s / size * 1e6,
                hint_p99_ms=_p99(sorted(hints)) * 1e3,
            )
        )

    async def _probe(self) -> list[float]:
        """Ask for a hint every few milliseconds, however long each takes, until cancelled."""
        request = pb.GetHintRequest(device_id="phone").SerializeToString()
        calls: list[asyncio.Task[float]] = []
        try:
            while True:
                calls.append(asyncio.create_task(self.hint.call(request)))
                await asyncio.sleep(_PROBE_EVERY_S)
        except asyncio.CancelledError:
            return list(await asyncio.gather(*calls))


def of(size: int, name: str, options: Options) -> Figure:
    """Measure the 99th percentile of milliseconds from a publish to its arrival at all of `size` streams."""
    with migrated_stores() as stores:
        add_watchers(stores, size)
        with our_server(stores) as server, slot_server() as baseline:
            return uvloop.run(_measure(name, size, options, (server, stores.pids[0]), (baseline, None)))


async def _measure(
    name: str,
    size: int,
    options: Options,
    ours: tuple[RunningProcess, int | None],
    baseline: tuple[RunningProcess, int | None],
) -> Figure:
    rounds = min(options.rounds, _MOST_ROUNDS)
    async with asyncio.timeout(_TIMEOUT_S + rounds * (_REST_S + 10)):
        tokens = watcher_tokens(size)
        sides = [await _open(server, database, tokens) for server, database in (ours, baseline)]
        for number in range(rounds + 1):
            for side in sides if number % 2 else reversed(sides):
                await asyncio.sleep(_REST_S if side is sides[0] else 0.5)
                await side.measure(size)
            if not number:  # warms up
                sides[0].sent.clear()
                sides[1].sent.clear()
                continue
            mine, theirs = (side.sent[-1] for side in sides)
            report_progress(f"{name}: round {number}/{rounds}: {mine} against {theirs}")
    for side in sides:
        side.streams.abort()
    return _figure(name, size, sides[0].sent, sides[1].sent)


async def _open(server: RunningProcess, database_pid: int | None, tokens: list[str]) -> Side:
    streams = streams_to(server, tokens)
    report_progress(f"{len(tokens)} streams open after {await streams.open():.1f} s, {streams.refused} refused")
    publish = Unary(await connect(server.address), PUBLISH, SERVICE_TOKEN)
    return Side(server, database_pid, streams, publish, Unary(await connect(server.address), GET_HINT, tokens[0]))


def _p99(ordered: list[float]) -> float:
    return ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]


def _figure(name: str, size: int, ours: list[Sent], baseline: list[Sent]) -> Figure:
    def middle(sent: list[Sent], name: str) -> float:
        values: list[float] = [getattr(one, name) for one in sent]
        return round(median(values), 1)

    rates = [mine.per_s / theirs.per_s for mine, theirs in zip(ours, baseline, strict=True)]
    return Figure(
        name=name,
        unit="ms",
        better=Better.LESS,
        value=median(one.p99_ms for one in ours),
        baseline=median(one.p99_ms for one in baseline),
        runs=[[mine.p99_ms, theirs.p99_ms] for mine, theirs in zip(ours, baseline, strict=True)],
        notes={
            "streams": size,
            "messages_per_s": middle(ours, "per_s"),
            "baseline_messages_per_s": middle(baseline, "per_s"),
            "rate_ratio": round(median(rates), 3),
            "cpu_us_per_message": middle(ours, "cpu_us"),
            "database_cpu_us_per_message": middle(ours, "database_cpu_us"),
            "baseline_cpu_us_per_message": middle(baseline, "cpu_us"),
            "hint_p99_ms": middle(ours, "hint_p99_ms"),
            "baseline_hint_p99_ms": middle(baseline, "hint_p99_ms"),
        },
    )


to_1k = partial(of, 1_000, "fanout_1k_p99_ms")
to_5k = partial(of, 5_000, "fanout_5k_p99_ms")
