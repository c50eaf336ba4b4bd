"""Tombstones of keys that were deleted long ago are removed, and nobody misses a deletion by that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, cast

import pytest

from syncbeat_server.errors import DependencyDown, SequenceMismatch
from syncbeat_server.events.publish import Publish
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.storage.retention import BEGINNING
from syncbeat_server.sync.feed.reader import FeedReader
from syncbeat_server.sync.feed.tombstone_pruning import TombstonePruner
from syncbeat_server.sync.feed.writer import Append, append
from syncbeat_server.sync.model import Checkpoint, Cursor, NewChange, Reset
from syncbeat_server.sync.policy import DEFAULT_TUNING
from syncbeat_server.sync.store import tombstones
from syncbeat_server.sync.streams.stream_context import StreamRule
from tests.support.build import APP, SyncFeature
from tests.support.databases import DatabaseUrls, open_database, run_sql
from tests.support.fake_clock import FakeClock, settle, wait_until
from tests.support.seed import couple, rows_of, until, value_of
from tests.support.sync_streams import Reader, keys, stream

pytestmark = [pytest.mark.store, pytest.mark.usefixtures("database", "clock")]

DAY_S = 86_400.0
MOST_PAGES = 20


@pytest.fixture
async def sync(database: Database, clock: FakeClock) -> SyncFeature:
    await couple(database)
    return SyncFeature(database, clock)


class Device:
    """Keeps what it is told, as an app should."""

    def __init__(self, sync: SyncFeature) -> None:
        self._house = sync
        self.cursor = Cursor("couple")
        self.keys: set[str] = set()
        self.resets = 0

    async def next_page(self) -> bool:
        """Fetch a small page; whether there is another."""
        page = await self._house.page(self.cursor, limit=2, user_id="ann")
        if page.reset:
            self.keys.clear()
            self.resets += 1
        for change in page.changes:
            (self.keys.discard if change.deleted else self.keys.add)(change.key)
        self.cursor = page.next
        return page.more

    async def sync(self) -> set[str]:
        """Fetch all there is; what it keeps then."""
        for _ in range(MOST_PAGES):
            if not await self.next_page():
                return self.keys
        raise AssertionError("the list does not end")


def pruner(sync: SyncFeature, keep_days: float = 30.0, database: Database | None = None) -> TombstonePruner:
    return TombstonePruner(database or sync.database, keep_days, sync.clock)


async def live(sync: SyncFeature) -> set[str]:
    return {key for (key,) in await rows_of(sync.database, "SELECT key FROM changes WHERE NOT deleted")}


async def pruned(sync: SyncFeature) -> int:
    found: int = await value_of(sync.database, "SELECT pruned FROM scopes WHERE scope = 'couple'")
    return found


async def long_ago(sync: SyncFeature) -> Device:
    """A device that saw keys of which some were deleted after, more than 30 days ago. The live ones fill pages on both
    sides of the tombstones."""
    device = Device(sync)
    await sync.publish("a", "b", "c", "d", "e", "f")
    await device.sync()
    await sync.publish("b", "d", deleted=True)
    await sync.publish("g", "h", "i")
    await sync.clock.advance(32 * DAY_S)
    return device


async def test_tombstone_pruned_makes_an_old_cursor_list_anew(sync: SyncFeature) -> None:
    device = await long_ago(sync)
    assert await pruner(sync).prune() == 2
    assert await pruned(sync) == 8
    assert await value_of(sync.database, "SELECT count(*) FROM changes WHERE deleted") == 0
    assert await device.sync() == await live(sync) == set("acefghi")
    assert device.resets == 1, "pages of the list that follows a reset are no reason for another"
    await sync.publish("j")
    assert await device.sync() == set("acefghij")
    assert device.resets == 1


async def test_tombstone_pruned_does_not_reset_who_saw_the_deletion(sync: SyncFeature) -> None:
    device = Device(sync)
    await sync.publish("a", "b", "c")
    await sync.publish("b", deleted=True)
    assert await device.sync() == {"a", "c"}
    await sync.clock.advance(32 * DAY_S)
    assert await pruner(sync).prune() == 1
    await sync.publish("d")
    assert await device.sync() == {"a", "c", "d"}
    assert device.resets == 0


async def test_tombstone_is_delivered_to_who_returns_in_time(sync: SyncFeature) -> None:
    device = Device(sync)
    await sync.publish("a", "b", "c")
    await device.sync()
    await sync.publish("b", deleted=True)
    await sync.clock.advance(30 * DAY_S)
    assert await pruner(sync).prune() == 0
    assert await device.sync() == {"a", "c"}
    assert device.resets == 0


async def test_tombstone_retention_is_a_setting(sync: SyncFeature) -> None:
    await sync.publish("a", deleted=True)
    await sync.clock.advance(1.4 * DAY_S)
    assert await pruner(sync, keep_days=1.0).prune() == 0, "those of a day go together, when it is over"
    await sync.clock.advance(0.2 * DAY_S)
    assert await pruner(sync, keep_days=2.0).prune() == 0
    assert await pruner(sync, keep_days=1.0).prune() == 1


async def test_tombstone_pruning_spares_live_keys(sync: SyncFeature) -> None:
    await sync.publish("old", "revived")
    await sync.publish("revived", deleted=True)
    await sync.publish("revived")
    await sync.clock.advance(300 * DAY_S)
    await sync.publish("late", deleted=True)
    assert await pruner(sync).prune() == 0
    assert await live(sync) == {"old", "revived"}
    assert await pruned(sync) == 0


async def test_tombstone_pruned_restarts_a_list_under_way(sync: SyncFeature) -> None:
    device = await long_ago(sync)
    newcomer = Device(sync)
    for one in (device, newcomer):
        assert await one.next_page()
    await pruner(sync).prune()
    assert await device.sync() == await newcomer.sync() == await live(sync)
    await sync.publish("a", deleted=True)
    await sync.clock.advance(DAY_S)
    another = Device(sync)
    assert await another.next_page()
    await sync.clock.advance(31 * DAY_S)
    await pruner(sync).prune()
    assert await another.sync() == await live(sync) == set("cefghi")
    assert another.resets == 1, "what it was told of before was deleted since"


class Interrupted:
    """A Database on whose connections something happens after the first statement."""

    def __init__(self, database: Database, between: Callable[[], Awaitable[object]]) -> None:
        self._database = database
        self._between = between

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Any]:
        async with self._database.connection() as conn:
            yield _Interrupted(conn, self._between)


class _Interrupted:
    def __init__(self, conn: Any, between: Callable[[], Awaitable[object]]) -> None:
        self._conn = conn
        self._between = between
        self._statements = 0

    async def fetch(self, query: str, *arguments: object) -> Sequence[Any]:
        if self._statements == 1:
            await self._between()
        self._statements += 1
        return cast(Sequence[Any], await self._conn.fetch(query, *arguments))


async def test_tombstone_pruned_during_a_page_misses_nothing(sync: SyncFeature) -> None:
    device = await long_ago(sync)
    known = await sync.page(Cursor("couple"), limit=1)
    removed: list[int] = []

    async def prune() -> None:
        removed.append(await pruner(sync).prune())

    sync.reader = FeedReader(cast(Database, Interrupted(sync.database, prune)))
    pages = await sync.reader.pages(APP, "ann", [device.cursor, known.state.cursor, Cursor("couple")], 10)
    assert removed == [2], "after the heads were read, and before the changes"
    everything = list("acefghi")
    assert [(keys(page), page.reset, page.more) for page in pages if page is not None] == [
        (everything, True, False),
        ([], False, False),
        (everything, False, False),
    ]


async def test_tombstone_pruned_does_not_restart_pages_from_the_start(sync: SyncFeature) -> None:
    device = await long_ago(sync)
    sync.reader = FeedReader(cast(Database, Interrupted(sync.database, pruner(sync).prune)))
    assert await device.next_page()
    assert (device.resets, device.keys) == (1, {"a", "c"})
    assert await device.sync() == await live(sync)
    assert device.resets == 1


# ------------------------------------------------------------------------------------------------------------- streams


async def test_tombstone_pruned_resets_a_stream_of_an_old_cursor(sync: SyncFeature) -> None:
    device = await long_ago(sync)
    await pruner(sync).prune()
    async with stream(sync, device.cursor) as reader:
        assert [event.head.sequence for event in reader.events if isinstance(event, Reset)] == [11]
        head = await sync.publish("j")
        await wait_until(lambda: reader.changes() == [("j", head.sequence)])
    assert await device.sync() == set("acefghij")
    assert device.resets == 1


async def test_tombstone_is_streamed_to_who_returns_in_time(sync: SyncFeature) -> None:
    device = await long_ago(sync)
    async with stream(sync, device.cursor) as reader:
        await wait_until(lambda: reader.changes() == [("b", 7), ("d", 8), ("g", 9), ("h", 10), ("i", 11)])
        # What is removed while it is open it has told.
        assert await pruner(sync).prune() == 2
        await sync.publish("j")
        await wait_until(lambda: reader.changes()[-1] == ("j", 12))
        assert reader.count(Reset) == 0


async def test_tombstone_pruned_is_passed_by_a_stream_from_the_start(sync: SyncFeature) -> None:
    sync = sync.under(streams=StreamRule(page_size=2, news_every_s=0.0))
    await long_ago(sync)
    await pruner(sync).prune()
    told = [("a", 1), ("c", 3), ("e", 5), ("f", 6), ("g", 9), ("h", 10), ("i", 11)]
    async with stream(sync, Cursor("couple", "", 0)) as reader:
        await wait_until(lambda: reader.changes() == told)
        assert reader.count(Reset) == 0
        places = [event.cursors[0] for event in reader.events if isinstance(event, Checkpoint)]
    assert [place.sequence for place in places] == [3, 6, 10, 11]
    for place in places[:2]:  # where its client may break off
        async with stream(sync, place) as reader:
            rest = told[2:] if place.sequence == 3 else told[4:]
            await wait_until(partial(said, reader, rest))
            assert reader.count(Reset) == 0


def said(reader: Reader, changes: list[tuple[str, int]]) -> bool:
    return reader.changes() == changes


# ----------------------------------------------------------------------------------------------------------- the chore


async def test_tombstone_pruning_runs_in_batches(sync: SyncFeature) -> None:
    await sync.publish("a", "b", "c", "d", "e", deleted=True)
    await sync.clock.advance(32 * DAY_S)
    async with sync.database.connection() as conn:
        assert (await tombstones.remove_old(conn, 30.0, 2)).gone == 2
    assert await value_of(sync.database, "SELECT count(*) FROM changes") == 3
    whole = asyncio.ensure_future(TombstonePruner(sync.database, 30.0, sync.clock, batch=1).prune())
    await until(lambda: value_of(sync.database, "SELECT count(*) = 0 FROM changes"), moving=sync.clock)
    await sync.clock.advance(1.0)
    assert await whole == 3
    assert await pruned(sync) == 5


async def test_tombstone_pruning_runs_hourly_and_survives_an_outage(sync: SyncFeature, database: Database) -> None:
    await sync.publish("a", deleted=True)
    await sync.clock.advance(32 * DAY_S)
    running = asyncio.ensure_future(pruner(sync, database=sync.failing.as_database).run())
    try:
        await settle()
        sync.failing.error = DependencyDown("the database does not answer")
        await sync.clock.advance(3590.0)
        assert sync.failing.refused == 0
        await sync.clock.advance(20.0)
        assert sync.failing.refused == 1
        sync.failing.error = None
        await sync.clock.advance(3600.0)
        await until(lambda: value_of(database, "SELECT count(*) = 0 FROM changes"))
    finally:
        running.cancel()
        await asyncio.wait([running])


async def test_tombstone_pruning_by_several_processes(sync: SyncFeature, database_urls: DatabaseUrls) -> None:
    names = [f"k{number}" for number in range(20)]
    for number in range(10):
        await sync.publish(*names, scope=f"scope-{number}", deleted=True)
    await sync.clock.advance(32 * DAY_S)
    async with open_database(database_urls.app_url, size=2, name="other") as other:
        prunings = [pruner(sync), pruner(sync, database=other), pruner(sync), pruner(sync, database=other)]
        removed = await asyncio.gather(*(one.prune() for one in prunings))
    left = await value_of(sync.database, "SELECT count(*)::int FROM changes")
    assert sum(removed) == 200 - left
    assert await pruner(sync).prune() == left
    marks = await rows_of(sync.database, "SELECT DISTINCT pruned FROM scopes WHERE scope LIKE 'scope-%'")
    assert marks == [(20,)]


async def test_tombstone_pruning_skips_a_locked_scope(sync: SyncFeature) -> None:
    await sync.publish("a", "b", deleted=True)
    await sync.publish("c", scope="other", deleted=True)
    await sync.clock.advance(32 * DAY_S)
    async with sync.database.transaction() as conn:
        revives = Append(APP, (NewChange("couple", "a", "1"),))
        await append(conn, [revives], lambda app_id: DEFAULT_TUNING.prior, create_scopes=False)
        assert await pruner(sync).prune() == 1, "that of the other scope, without waiting"
    assert await pruner(sync).prune() == 1
    assert await rows_of(sync.database, "SELECT key, deleted FROM changes") == [("a", False)]
    assert await pruned(sync) == 2


PAUSED_CLOCK = """CREATE OR REPLACE FUNCTION syncbeat_now() RETURNS timestamptz LANGUAGE plpgsql STABLE AS $$
BEGIN
    IF current_setting('application_name') = 'paused' THEN PERFORM pg_advisory_xact_lock_shared(1); END IF;
    RETURN (SELECT at FROM test_clock);
END $$"""


async def test_tombstone_pruning_spares_a_key_written_again(sync: SyncFeature, database_urls: DatabaseUrls) -> None:
    await sync.publish("a", "b", deleted=True)
    await sync.clock.advance(32 * DAY_S)
    await run_sql(database_urls.owner_url, PAUSED_CLOCK)
    async with open_database(database_urls.app_url, size=1, name="paused") as paused:
        async with sync.database.transaction() as conn:
            await conn.execute("SELECT pg_advisory_xact_lock(1)")
            removing = asyncio.ensure_future(pruner(sync, database=paused).prune())
            waits = "SELECT count(*) = 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            await until(lambda: value_of(sync.database, waits), what="it has begun, and looks at what it saw then")
            await sync.publish("a")
        assert await removing == 1
    assert await rows_of(sync.database, "SELECT key, deleted FROM changes") == [("a", False)]


async def test_tombstone_pruning_uses_an_index(sync: SyncFeature, database_urls: DatabaseUrls) -> None:
    await sync.publish("dead", deleted=True)
    await run_sql(
        database_urls.admin_url,
        """INSERT INTO changes (app_id, scope, key, value, sequence, changed_at)
           SELECT 'default', 'couple', 'k' || n, '1', 10 + n, syncbeat_now() FROM generate_series(1, 20000) n""",
        "ANALYZE changes",
    )
    await sync.clock.advance(32 * DAY_S)
    explained = f"EXPLAIN {tombstones.REMOVE_OLD}"
    plan = [line for (line,) in await rows_of(sync.database, explained, 30.0, 1_000, BEGINNING)]
    assert any("changes_tombstones" in line for line in plan), plan
    assert not any("Seq Scan on changes" in line for line in plan), plan


# ------------------------------------------------------------------------------------------------- writers and cursors


async def test_tombstone_pruned_key_does_not_exist(sync: SyncFeature) -> None:
    await sync.publish("a")
    await sync.publish("a", deleted=True)

    async def publish(expected: int) -> tuple[int, ...]:
        change = NewChange("couple", "a", '{"again": true}', expected_sequence=expected)
        made = await sync.publisher.publish(Publish(APP, "service:test", (change,), None, None, "", b""))
        return made.sequences

    with pytest.raises(SequenceMismatch) as refused:
        await publish(0)
    assert refused.value.metadata["sequence"] == "2"
    await sync.clock.advance(32 * DAY_S)
    await pruner(sync).prune()
    for past in (1, 2):
        with pytest.raises(SequenceMismatch) as refused:
            await publish(past)
        assert refused.value.metadata["sequence"] == "0"
    assert await publish(0) == (3,)
    assert await rows_of(sync.database, "SELECT value::text FROM changes") == [('{"again": true}',)]
