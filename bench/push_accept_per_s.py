"""Rate at which SendNotification to 500 devices is accepted, and the latency of deliveries at half the maximum load."""

from __future__ import annotations

import asyncio
import time
from statistics import median, quantiles

import asyncpg
import grpc

from bench.figure import Better, Figure, Options, report_progress
from bench.push_stage import PushStage, count_sent, push_stage, wait_until_sent
from bench.stage import SEND, SERVICE_TOKEN

_EACH = 500
_CALLERS = 4
_SECONDS = 10.0
_SMALL = 10
# The rows that accepting writes, without any of its decisions.
_INSERT = """
WITH n AS (
    INSERT INTO notifications (app_id, notification_id, kind, caller, content, priority, created_at, due_at, expires_at)
    VALUES ('default', gen_random_uuid(), 'MESSAGE', '', '{}', 'NORMAL', now(), now() + interval '1 day', now())
    RETURNING notification_id)
INSERT INTO deliveries (app_id, notification_id, user_id, device_id, state, priority, due_at, expires_at, created_at,
                        updated_at)
SELECT 'default', n.notification_id, u, 'phone', 'SCHEDULED', 1, now() + interval '1 day', now(), now(), now()
FROM n, unnest($1::text[]) u
"""


def accept_rate(options: Options) -> Figure:
    """Measure deliveries accepted per second, committed in PostgreSQL before the response. No worker takes part."""
    runs = []
    with push_stage(worker=False) as stage:
        asyncio.run(_accept(stage, 1.0))
        for number in range(1, options.rounds + 1):
            runs.append((asyncio.run(_accept(stage, options.seconds)), asyncio.run(_insert(stage, options.seconds))))
            report_progress(
                f"push_accept_per_s: round {number}/{options.rounds}: {runs[-1][0]:,.0f} against {runs[-1][1]:,.0f}"
            )
    return Figure(
        name="push_accept_per_s",
        unit="deliveries/s",
        better=Better.MORE,
        value=median(mine for mine, _ in runs),
        baseline=median(theirs for _, theirs in runs),
        runs=[list(run) for run in runs],
        notes={
            "baseline_is": "bare INSERTs of 500 such rows each, on as many connections as there are callers",
            "devices_each_call": _EACH,
            "callers": _CALLERS,
            "fsync": False,
        },
    )


async def _insert(stage: PushStage, seconds: float) -> float:
    loop = asyncio.get_running_loop()
    started = loop.time()

    async def insert_again() -> int:
        connection = await asyncpg.connect(stage.stores.app_url)
        try:
            calls = 0
            while loop.time() - started < seconds:
                await connection.execute(_INSERT, stage.users[:_EACH])
                calls += 1
            return calls
        finally:
            await connection.close()

    calls = sum(await asyncio.gather(*(insert_again() for _ in range(_CALLERS))))
    return calls * _EACH / (loop.time() - started)


async def _accept(stage: PushStage, seconds: float) -> float:
    metadata = (("authorization", f"Bearer {SERVICE_TOKEN}"),)
    async with grpc.aio.insecure_channel(stage.server.address) as channel:
        made: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(SEND)
        loop = asyncio.get_running_loop()
        started = loop.time()

        async def call_again() -> int:
            calls = 0
            while loop.time() - started < seconds:
                await made(stage.request(_EACH, calls * _EACH), metadata=metadata, timeout=10)
                calls += 1
            return calls

        calls = sum(await asyncio.gather(*(call_again() for _ in range(_CALLERS))))
        return calls * _EACH / (loop.time() - started)


def latency(options: Options) -> Figure:
    """Measure the 95th percentile from acceptance to recorded SENT, at half the rate measured just before."""
    with push_stage() as stage:
        stage.push(1, 1_000)
        full = median(run.count / run.seconds for run in (stage.push(2, 1_000) for _ in range(3)))
        idle = quantiles(asyncio.run(_send_at_rate(stage, full / 20)), n=100)
        waits = asyncio.run(_send_at_rate(stage, full / 2))
    cuts = quantiles(waits, n=100)
    return Figure(
        name="push_p95_ms",
        unit="ms",
        better=Better.LESS,
        value=cuts[94],
        baseline=idle[94],
        runs=[[cuts[94], idle[94]]],
        notes={
            "baseline_is": "the same at a twentieth of the rate",
            "p50_ms": round(cuts[49], 1),
            "p99_ms": round(cuts[98], 1),
            "deliveries_per_s": round(full / 2),
            "of_at_most": round(full),
            "deliveries": len(waits),
            "devices_each_call": _SMALL,
        },
    )


async def _send_at_rate(stage: PushStage, per_s: float) -> list[float]:
    metadata = (("authorization", f"Bearer {SERVICE_TOKEN}"),)
    connection = await asyncpg.connect(stage.stores.app_url)
    try:
        before, start = await count_sent(connection), await connection.fetchval("SELECT now()")
        calls = int(per_s * _SECONDS / _SMALL)
        async with grpc.aio.insecure_channel(stage.server.address) as channel:
            made: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(SEND)
            under_way = []
            began = time.perf_counter()
            for number in range(calls):
                await asyncio.sleep(max(0.0, began + number * _SMALL / per_s - time.perf_counter()))
                under_way.append(
                    asyncio.ensure_future(made(stage.request(_SMALL, number * _SMALL), metadata=metadata, timeout=10))
                )
            await asyncio.gather(*under_way)
        await wait_until_sent(connection, before + calls * _SMALL)
        rows = await connection.fetch(
            "SELECT extract(epoch FROM updated_at - created_at)::float8 AS s FROM deliveries WHERE created_at > $1",
            start,
        )
        return [row["s"] * 1000 for row in rows]
    finally:
        await connection.close()
