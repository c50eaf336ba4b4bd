"""Claims do not pass what has gone already, and miss nothing by that."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial

import asyncpg
import pytest

from syncbeat_server.push.accept import accept as accept_in
from syncbeat_server.push.delivery.scan_frontier import Frontier, ScanDepth
from syncbeat_server.push.model import Lane
from syncbeat_server.push.store import queue
from syncbeat_server.push.store.queue import QUEUE_START, AppLane, QueuePosition
from syncbeat_server.storage.postgres.database import Database
from tests.support.build import APP, make_worker
from tests.support.databases import DatabaseUrls, run_sql
from tests.support.doubles import ScriptedProvider
from tests.support.fake_clock import FakeClock
from tests.support.seed import accept, couple, message, shown, value_of
from tests.support.workers import running, until_shown

pytestmark = pytest.mark.store

LEASE = str(uuid.UUID(int=1))
PASSED = 20_000
_PLANT = """
    INSERT INTO deliveries (app_id, notification_id, user_id, device_id, state, priority, due_at, expires_at,
                            created_at, updated_at)
    SELECT 'default', lpad(n::text, 32, '0')::uuid, 'ann', 'phone', 'PENDING', 0, {due}, now() + interval '1 hour',
           now(), now()
    FROM generate_series(1, {count}) n"""


def _start(place: QueuePosition, _lane: AppLane) -> QueuePosition:
    """Return where to claim from: the same place in each lane."""
    return place


@asynccontextmanager
async def held_snapshot(urls: DatabaseUrls) -> AsyncIterator[None]:
    """Somebody else's transaction, of whose snapshot nothing can be vacuumed away."""
    conn = await asyncpg.connect(urls.admin_url)
    try:
        await conn.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        await conn.execute("SELECT 1 FROM deliveries LIMIT 1")
        yield
    finally:
        await conn.close()


async def buffers_of_a_claim(urls: DatabaseUrls, place: QueuePosition) -> int:
    """Pages that a claim of 200 looks at, undone after."""
    conn = await asyncpg.connect(urls.admin_url)
    try:
        lanes = list(Lane)
        await conn.execute("BEGIN")
        told = await conn.fetchval(
            f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {queue.CLAIM}",
            LEASE,
            30.0,
            [APP] * len(lanes),
            [200] * len(lanes),
            [int(lane) for lane in lanes],
            [place.due_at] * len(lanes),
            [place.delivery_id] * len(lanes),
            200,
        )
        await conn.execute("ROLLBACK")
        plan = json.loads(told)[0]["Plan"]
        return int(plan["Shared Hit Blocks"]) + int(plan["Shared Read Blocks"])
    finally:
        await conn.close()


@pytest.mark.parametrize("due", ["now() - n * interval '1 millisecond'", "now() - interval '1 minute'"])
async def test_queue_frontier_passes_nothing_under_a_held_snapshot(
    database: Database, database_urls: DatabaseUrls, due: str
) -> None:
    await run_sql(
        database_urls.admin_url,
        "ALTER TABLE deliveries SET (autovacuum_enabled = false)",
        "SET session_replication_role = replica",
        _PLANT.format(due=due, count=PASSED + 1_000),
        "ANALYZE deliveries",
    )
    fresh = await buffers_of_a_claim(database_urls, QUEUE_START)
    async with held_snapshot(database_urls):
        last = QUEUE_START
        for _ in range(PASSED // 2_000):
            async with database.transaction() as conn:
                found = await queue.claim(conn, LEASE, 30.0, {APP: 2_000}, partial(_start, last))
            assert len(found.keys) == 2_000
            last = found.last[APP, 0]
        near, far = [await buffers_of_a_claim(database_urls, place) for place in (last, QUEUE_START)]
    assert near < 2 * fresh, (near, fresh)
    assert far > near + PASSED / 200, "the dead end is there, and was not walked"


@pytest.mark.usefixtures("database", "clock")
class TestBehindTheFrontier:
    async def test_queue_frontier_claims_a_late_commit_within_five_seconds(
        self, database: Database, clock: FakeClock
    ) -> None:
        await couple(database)
        before, late = message(), message()
        async with running(make_worker(database, clock, ScriptedProvider())):
            async with database.transaction() as conn:
                await accept_in(conn, [late])
                await clock.advance(30)
                await accept(database, before)
                await until_shown(database, "ann SENT", of=before, moving=clock)
                await clock.advance(60)
            await clock.advance(5)
            await until_shown(database, "ann SENT", of=late)

    @pytest.mark.parametrize("behind_s", [3, 50, 3_000])
    async def test_queue_frontier_claims_a_returned_delivery_within_five_seconds(
        self, database: Database, clock: FakeClock, behind_s: int
    ) -> None:
        await couple(database)
        before, back = message(), message(ttl_s=200_000.0)
        async with running(make_worker(database, clock, ScriptedProvider())):
            await accept(database, before, back)
            await until_shown(database, "ann SENT", of=before, moving=clock)
            await until_shown(database, "ann SENT", of=back)
            await clock.advance(10)
            async with database.connection() as conn:
                await conn.execute(
                    """UPDATE deliveries SET state = 'PENDING', due_at = syncbeat_now() - make_interval(secs => $2)
                       WHERE notification_id = $1""",
                    back.notification_id,
                    float(behind_s),
                )
            await clock.advance(5)
            await until_shown(database, "ann SENT", of=back)

    async def test_queue_frontier_claims_after_an_expired_lease(self, database: Database, clock: FakeClock) -> None:
        await couple(database)
        lost = message()
        await accept(database, lost)
        async with database.transaction() as conn:
            await queue.claim(conn, LEASE, 30.0, {APP: 1})
        async with running(make_worker(database, clock, ScriptedProvider(), lease_s=30.0)):
            await clock.advance(29)
            assert await shown(database, lost) == ["ann IN_FLIGHT"]
            await until_shown(database, "ann SENT", of=lost, moving=clock)
        assert await value_of(database, "SELECT attempts FROM deliveries") == 2


async def test_queue_frontier_looks_back_a_minute_and_periodically_to_the_start() -> None:
    clock = FakeClock()
    frontier = Frontier[str](clock)
    at = clock.now()
    depths = []
    for _ in range(9):
        depth = frontier.begin_scan()
        depths.append(depth)
        frontier.advance("lane", QueuePosition(at, LEASE), at)
        frontier.end_scan(depth)
        await clock.advance(0.5)
    near, recent, everything = ScanDepth.NEAR, ScanDepth.RECENT, ScanDepth.ALL
    assert depths == [everything, near, recent, near, recent, near, everything, near, recent]
    assert frontier.position(near, "lane") == QueuePosition(at, LEASE)
    assert (at - frontier.position(recent, "lane").due_at).total_seconds() == 60
    assert frontier.position(everything, "lane") == frontier.position(near, "another") == QUEUE_START


async def test_queue_frontier_looks_back_less_often_when_slow() -> None:
    clock = FakeClock()
    frontier = Frontier[str](clock)
    depth = frontier.begin_scan()
    await clock.advance(1.0)
    frontier.end_scan(depth)
    waits: dict[ScanDepth, float] = {}
    for tenth in range(300):
        waits.setdefault(frontier.begin_scan(), tenth / 10)
        await clock.advance(0.1)
    assert waits == {
        ScanDepth.NEAR: 0.0,
        ScanDepth.RECENT: pytest.approx(10.0, abs=0.11),
        ScanDepth.ALL: pytest.approx(20.0, abs=0.11),
    }


async def test_queue_frontier_stays_behind_what_commits_late_on_a_slow_database() -> None:
    clock, now = FakeClock(), datetime(2026, 11, 29, tzinfo=UTC)
    frontier = Frontier[str](clock)
    frontier.begin_scan()
    frontier.advance("app", None, now)
    assert frontier.position(ScanDepth.NEAR, "app").due_at == now - timedelta(seconds=2)
    frontier.begin_scan()
    await clock.advance(3.0)
    frontier.advance("app", None, now)
    assert frontier.position(ScanDepth.NEAR, "app").due_at == now - timedelta(seconds=8)
