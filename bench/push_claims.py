"""Time of a claim of 200 after many deliveries were sent under a held snapshot; and the rate of deleting old rows."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from statistics import median

import asyncpg

from bench.figure import Better, Figure, Options, report_progress
from bench.stage import migrated_stores
from syncbeat_devtools.embedded import EmbeddedStores
from syncbeat_server.clock import SystemClock
from syncbeat_server.push.accept import close_windows
from syncbeat_server.push.delivery.maintenance import old_rows
from syncbeat_server.push.delivery.scan_frontier import Frontier
from syncbeat_server.push.model import Lane
from syncbeat_server.push.store import queue
from syncbeat_server.storage.postgres.database import Database, open_database
from syncbeat_server.storage.retention import Retention

_APP = "default"
_EACH = 200
_CLAIMS = 60
_PASSING = 2_000
_LEVELS = (0, 100_000, 500_000)
_OLD = 200_000
_DAYS = 30.0
# As the superuser and in replica mode, without triggers and references.
_FILL = (
    "SET session_replication_role = replica",
    """INSERT INTO notifications (app_id, notification_id, kind, caller, content, priority, accepted, created_at,
                                  due_at, expires_at)
       SELECT 'default', lpad(n::text, 32, '0')::uuid, 'MESSAGE', 'bench', '{{}}', 'HIGH', 1000, now(), now(),
              now() + interval '1 day'
       FROM generate_series(0, {count} / 1000) n""",
    """INSERT INTO deliveries (app_id, notification_id, user_id, device_id, state, priority, due_at, expires_at,
                               created_at, updated_at)
       SELECT 'default', lpad((n / 1000)::text, 32, '0')::uuid, 'user-' || n, 'phone', 'PENDING', 0,
              now() - ({count} - n) * interval '1 millisecond', now() + interval '1 day', now(), now()
       FROM generate_series(1, {count}) n""",
    "VACUUM ANALYZE notifications, deliveries",
    "CHECKPOINT",
)
_RECORDS = """
    INSERT INTO request_records (app_id, caller, rpc, request_id, content_hash, answer, created_at)
    SELECT 'default', 'bench', 'SendNotification', 'request-' || n, sha256(n::text::bytea), '{{"count": 1}}',
           now() - interval '{age_days} days' + n * interval '1 millisecond'
    FROM generate_series({first}, {last}) n"""
_ARRIVING_PER_S, _ARRIVE_EVERY_S = 3_000, 0.1


class _Claims:
    """Claims as a worker does, and marks the claimed deliveries as sent."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._frontier = Frontier[queue.AppLane](SystemClock())

    async def claim(self, count: int) -> float:
        """Return the milliseconds that a claim of `count` took."""
        token, began = str(uuid.uuid4()), time.perf_counter()
        reach = self._frontier.begin_scan()
        async with self._database.transaction() as conn:
            found = await queue.claim(conn, token, 30.0, {_APP: count}, partial(self._frontier.position, reach))
            if found.trailing:
                await close_windows(conn, token, found.trailing)
            await queue.read_claimed(conn, token, found.keys)
        took_ms = (time.perf_counter() - began) * 1000
        for lane in Lane:
            last = found.last.get((_APP, lane))
            if last is not None:
                self._frontier.advance((_APP, lane), last, found.now)
        self._frontier.end_scan(reach)
        assert len(found.keys) == count
        async with self._database.connection() as conn:
            await conn.execute(
                """UPDATE deliveries d SET state = 'SENT', lease_token = NULL, lease_until = NULL
                   FROM unnest($1::text[], $2::uuid[]) AS k (app_id, delivery_id)
                   WHERE (d.app_id, d.delivery_id) = (k.app_id, k.delivery_id)""",
                [app_id for app_id, _ in found.keys],
                [delivery_id for _, delivery_id in found.keys],
            )
        return took_ms


def claims(options: Options) -> Figure:
    """Measure milliseconds of a claim of 200 after half a million under a held snapshot; the baseline is before any."""
    with migrated_stores() as stores:
        held = asyncio.run(_levels(stores, held=True))
    with migrated_stores() as stores:
        free = asyncio.run(_levels(stores, held=False))
    names = [f"{passed:,}" for passed in _LEVELS]
    return Figure(
        name="push_claim_ms",
        unit="ms",
        better=Better.LESS,
        value=held[-1][0],
        baseline=held[0][0],
        runs=[[one[0], held[0][0]] for one in held[-1:]],
        notes={
            "baseline_is": "the same before any delivery has gone",
            "after": dict(zip(names, (round(one[0], 2) for one in held), strict=True)),
            "mean_after": dict(zip(names, (round(one[1], 2) for one in held), strict=True)),
            "without_held_snapshot": dict(zip(names, (round(one[0], 2) for one in free), strict=True)),
            "each": _EACH,
            "claims": _CLAIMS,
        },
    )


async def _levels(stores: EmbeddedStores, *, held: bool) -> list[tuple[float, float]]:
    """Return median and mean of a claim at each level."""
    count = _LEVELS[-1] + len(_LEVELS) * _CLAIMS * _EACH
    report_progress(f"push_claim_ms: fill in {count:,} deliveries")
    await _as_admin(stores, *(statement.format(count=count) for statement in _FILL))
    levels, passed = [], 0
    async with open_database(stores.app_url, size=2, name="bench") as database, _snapshot(stores, held=held):
        working = _Claims(database)
        for level in _LEVELS:
            while passed < level:
                await working.claim(_PASSING)
                passed += _PASSING
            took = [await working.claim(_EACH) for _ in range(_CLAIMS)]
            levels.append((median(took), sum(took) / len(took)))
            report_progress(f"push_claim_ms: {levels[-1][0]:.1f} ms after {level:,}, {'held' if held else 'free'}")
    return levels


def retention(options: Options) -> Figure:
    """Measure request records deleted per second, during claims and inserts; the baseline is the rate of inserts."""
    with migrated_stores() as stores:
        return asyncio.run(_measure_retention(stores))


async def _measure_retention(stores: EmbeddedStores) -> Figure:
    report_progress(f"retention_per_s: fill in {_OLD:,} old request records")
    count = 30_000
    await _as_admin(
        stores,
        *(statement.format(count=count) for statement in _FILL),
        _RECORDS.format(age_days=60, first=1, last=_OLD),
    )
    async with open_database(stores.app_url, size=4, name="bench") as database:
        working, gone = _Claims(database), 0

        def count_deleted(rows: str, number: int) -> None:
            nonlocal gone
            gone += number

        alone = [await working.claim(_EACH) for _ in range(_CLAIMS)]
        arriving = asyncio.ensure_future(_arrivals(stores))
        sweeping = asyncio.ensure_future(Retention(database, old_rows(_DAYS), SystemClock(), count_deleted).sweep())
        began = time.perf_counter()
        beside: list[float] = []
        while not sweeping.done():
            if (len(beside) + 1) * _EACH < count - _CLAIMS * _EACH:
                beside.append(await working.claim(_EACH))
            else:
                await asyncio.wait([sweeping])
        took_s = time.perf_counter() - began
        await sweeping
        arriving.cancel()
        arrived_per_s = await arriving / took_s
    assert gone == _OLD
    return Figure(
        name="retention_per_s",
        unit="rows/s",
        better=Better.MORE,
        value=gone / took_s,
        baseline=arrived_per_s,
        runs=[[gone / took_s, arrived_per_s]],
        notes={
            "baseline_is": f"records that came meanwhile, of {_ARRIVING_PER_S:,} requests a second",
            "rows": gone,
            "claim_ms_beside": round(median(beside), 2),
            "claim_ms_alone": round(median(alone), 2),
            "claims_beside": len(beside),
        },
    )


async def _arrivals(stores: EmbeddedStores) -> int:
    """Insert new records at a steady rate until cancelled. Returns how many."""
    each, added = round(_ARRIVING_PER_S * _ARRIVE_EVERY_S), 0
    conn = await asyncpg.connect(stores.admin_url)
    began = time.perf_counter()
    try:
        while True:
            first = _OLD + added + 1
            await conn.execute(_RECORDS.format(age_days=0, first=first, last=first + each - 1))
            added += each
            await asyncio.sleep(max(0.0, began + added / _ARRIVING_PER_S - time.perf_counter()))
    except asyncio.CancelledError:
        return added
    finally:
        await conn.close()


@asynccontextmanager
async def _snapshot(stores: EmbeddedStores, *, held: bool) -> AsyncIterator[None]:
    conn = await asyncpg.connect(stores.admin_url)
    try:
        if held:
            await conn.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
            await conn.execute("SELECT 1")
        yield
    finally:
        await conn.close()


async def _as_admin(stores: EmbeddedStores, *statements: str) -> None:
    conn = await asyncpg.connect(stores.admin_url)
    try:
        for statement in statements:
            await conn.execute(statement)
    finally:
        await conn.close()
