"""A drain goes by its order, with real streams and cursors; the server is a stand-in that keeps what it saw."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field

import pytest

from syncbeat_server.app.drain import drain_rpc
from syncbeat_server.ops.shutdown_budget import ShutdownBudget
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.sync.model import Cursor
from tests.support.build import PHONE, SyncFeature
from tests.support.databases import DatabaseUrls, run_sql
from tests.support.fake_clock import FakeClock, wait_until
from tests.support.seed import couple, rows_of
from tests.support.sync_streams import Reader, stream

pytestmark = pytest.mark.store

DRAIN_S = 20.0
FLUSH_S = 0.4  # of the time after a drain


@pytest.fixture
async def sync(database: Database, clock: FakeClock) -> SyncFeature:
    await couple(database)
    return SyncFeature(database, clock)


@dataclass
class CallsInFlight:
    """A server with a stream open, and with a call that shows a cursor just before it ends."""

    sync: SyncFeature
    reader: Reader
    head: Cursor
    seen: list[str] = field(default_factory=list)
    graces_s: list[float] = field(default_factory=list)

    def drain(self) -> None:
        self.seen.append(f"NOT_SERVING, streams {'drain' if self.sync.hub.draining else 'open'}")

    async def stop(self, grace_s: float) -> None:
        self.graces_s.append(grace_s)
        await wait_until(lambda: self.reader.ended, what="streams were told to end before calls are waited for")
        self.sync.cursors.record_shown(PHONE, [self.head])
        self.seen.append("calls ended")


async def shown(sync: SyncFeature) -> list[tuple[str, int]]:
    found = await rows_of(sync.database, "SELECT scope, sequence FROM device_cursors WHERE user_id = 'ann'")
    return [(scope, sequence) for scope, sequence in found]


async def test_drain_reports_not_serving_then_ends_streams_then_records_the_last_cursors(sync: SyncFeature) -> None:
    async with stream(sync, Cursor("couple", "", 0)) as reader:
        head = await sync.publish("a")
        server = CallsInFlight(sync, reader, head)
        await drain_rpc(ShutdownBudget(DRAIN_S), server, [sync.hub], [("cursors", sync.cursors.flush)])
    assert server.seen == ["NOT_SERVING, streams open", "calls ended"]
    assert await shown(sync) == [("couple", 1)], "that of the last call too"


async def test_drain_gives_calls_what_is_left_of_the_shutdown_budget(sync: SyncFeature) -> None:
    shutdown = ShutdownBudget(DRAIN_S)
    shutdown.start()
    async with stream(sync) as reader:
        head = await sync.publish("a")
        server = CallsInFlight(sync, reader, head)
        await wait_until(lambda: shutdown.remaining_s() < DRAIN_S, what="some of it has passed")
        await drain_rpc(shutdown, server, [sync.hub], [("cursors", sync.cursors.flush)])
    assert 0 < server.graces_s[0] < DRAIN_S


async def test_drain_ends_in_time_though_cursors_cannot_be_recorded(
    sync: SyncFeature, database_urls: DatabaseUrls, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    spent = ShutdownBudget(0.0)
    async with stream(sync) as reader:
        head = await sync.publish("a")
        lock = "BEGIN; LOCK TABLE device_cursors; SELECT pg_sleep(60)"
        held = asyncio.ensure_future(run_sql(database_urls.admin_url, lock))
        try:
            await wait_until(lambda: is_locked(sync), what="somebody holds the table")
            async with asyncio.timeout(FLUSH_S + 20.0):
                await drain_rpc(spent, CallsInFlight(sync, reader, head), [sync.hub], [("cursors", sync.cursors.flush)])
        finally:
            held.cancel()
            await asyncio.wait([held])
    assert "cursors not recorded in time" in caplog.text


async def is_locked(sync: SyncFeature) -> bool:
    locks = "SELECT 1 FROM pg_locks WHERE relation = 'device_cursors'::regclass AND mode = 'AccessExclusiveLock'"
    return bool(await rows_of(sync.database, locks))
