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
from syncbeat_server.storage.postgres.database import Database, open_database
from syncbeat_server.storage.retention import BEGINNING
from syncbeat_server.sync.feed import prune as prune_module
from syncbeat_server.sync.feed.prune import TombstonePruner
from syncbeat_server.sync.feed.reader import FeedReader
from syncbeat_server.sync.feed.writer import Append, append
from syncbeat_server.sync.model import Checkpoint, Cursor, NewChange, Reset
from syncbeat_server.sync.policy import DEFAULT_TUNING
from syncbeat_server.sync.store import tombstones
from syncbeat_server.sync.streams import checkpoint_schedule, hint_stream
from tests.conftest import DatabaseUrls, run_sql
from tests.fakes import FakeClock, settle, wait_until
from tests.storage.house import House, Reader, keys, stream
from tests.storage.stage import APP, couple, rows_of, until, value_of

pytestmark = pytest.mark.usefixtures("database", "clock")

DAY_S = 86_400.0
MOST_PAGES = 20


@pytest.fixture
async def house(database: Database, clock: FakeClock) -> House:
    await couple(database)
    return House(database, clock)


class Device:
    """Keeps what it is told, as an app should."""

    def __init__(self, house: House) -> None:
        self._house = house
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


def pruner(house: House, keep_days: float = 30.0, database: Database | None = None) -> TombstonePruner:
    return TombstonePruner(database or house.database, keep_days, house.clock)


async def live(house: House) -> set[str]:
    return {key for (key,) in await rows_of(house.database, "SELECT key FROM changes WHERE NOT deleted")}


async def pruned(house: House) -> int:
    found: int = await value_of(house.database, "SELECT pruned FROM scopes WHERE scope = 'couple'")
    return found


async def long_ago(house: House) -> Device:
    """A device that saw keys of which some were deleted after, more than 30 days ago. The live ones fill pages on both
    sides of the tombstones."""
    device = Device(house)
    await house.publish("a", "b", "c", "d", "e", "f")
    await device.sync()
    await house.publish("b", "d", deleted=True)
    await house.publish("g", "h", "i")
    await house.clock.advance(32 * DAY_S)
    return device


async def test_who_was_away_for_longer_lists_anew_and_ends_with_what_there_is(house: House) -> None:
    device = await long_ago(house)
    assert await pruner(house).prune() == 2
    assert await pruned(house) == 8
    assert await value_of(house.database, "SELECT count(*) FROM changes WHERE deleted") == 0
    assert await device.sync() == await live(house) == set("acefghi")
    assert device.resets == 1, "pages of the list that follows a reset are no reason for another"
    await house.publish("j")
    assert await device.sync() == set("acefghij")
    assert device.resets == 1


async def test_who_saw_the_deletion_is_not_reset(house: House) -> None:
    device = Device(house)
    await house.publish("a", "b", "c")
    await house.publish("b", deleted=True)
    assert await device.sync() == {"a", "c"}
    await house.clock.advance(32 * DAY_S)
    assert await pruner(house).prune() == 1
    await house.publish("d")
    assert await device.sync() == {"a", "c", "d"}
    assert device.resets == 0


async def test_who_comes_back_in_time_hears_of_the_deletion(house: House) -> None:
    device = Device(house)
    await house.publish("a", "b", "c")
    await device.sync()
    await house.publish("b", deleted=True)
    await house.clock.advance(30 * DAY_S)
    assert await pruner(house).prune() == 0
    assert await device.sync() == {"a", "c"}
    assert device.resets == 0


async def test_for_how_many_days_they_are_kept_is_a_setting(house: House) -> None:
    await house.publish("a", deleted=True)
    await house.clock.advance(1.4 * DAY_S)
    assert await pruner(house, keep_days=1.0).prune() == 0, "those of a day go together, when it is over"
    await house.clock.advance(0.2 * DAY_S)
    assert await pruner(house, keep_days=2.0).prune() == 0
    assert await pruner(house, keep_days=1.0).prune() == 1


async def test_a_live_key_stays_whatever_it_was_before(house: House) -> None:
    await house.publish("old", "revived")
    await house.publish("revived", deleted=True)
    await house.publish("revived")
    await house.clock.advance(300 * DAY_S)
    await house.publish("late", deleted=True)
    assert await pruner(house).prune() == 0
    assert await live(house) == {"old", "revived"}
    assert await pruned(house) == 0


async def test_a_list_under_way_begins_anew_and_ends(house: House) -> None:
    device = await long_ago(house)
    newcomer = Device(house)
    for one in (device, newcomer):
        assert await one.next_page()
    await pruner(house).prune()
    assert await device.sync() == await newcomer.sync() == await live(house)
    await house.publish("a", deleted=True)
    await house.clock.advance(DAY_S)
    another = Device(house)
    assert await another.next_page()
    await house.clock.advance(31 * DAY_S)
    await pruner(house).prune()
    assert await another.sync() == await live(house) == set("cefghi")
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


async def test_a_page_that_is_read_while_tombstones_go_misses_nothing(house: House) -> None:
    device = await long_ago(house)
    known = await house.page(Cursor("couple"), limit=1)
    removed: list[int] = []

    async def prune() -> None:
        removed.append(await pruner(house).prune())

    house.reader = FeedReader(cast(Database, Interrupted(house.database, prune)))
    pages = await house.reader.pages(APP, "ann", [device.cursor, known.state.cursor, Cursor("couple")], 10)
    assert removed == [2], "after the heads were read, and before the changes"
    everything = list("acefghi")
    assert [(keys(page), page.reset, page.more) for page in pages if page is not None] == [
        (everything, True, False),
        ([], False, False),
        (everything, False, False),
    ]


async def test_pages_from_the_start_that_were_read_meanwhile_are_gone_on_from(house: House) -> None:
    device = await long_ago(house)
    house.reader = FeedReader(cast(Database, Interrupted(house.database, pruner(house).prune)))
    assert await device.next_page()
    assert (device.resets, device.keys) == (1, {"a", "c"})
    assert await device.sync() == await live(house)
    assert device.resets == 1


# ------------------------------------------------------------------------------------------------------------- streams


async def test_a_stream_resets_who_was_away_for_longer_and_goes_on(house: House) -> None:
    device = await long_ago(house)
    await pruner(house).prune()
    async with stream(house, device.cursor) as reader:
        assert [event.head.sequence for event in reader.events if isinstance(event, Reset)] == [11]
        head = await house.publish("j")
        await wait_until(lambda: reader.changes() == [("j", head.sequence)])
    assert await device.sync() == set("acefghij")
    assert device.resets == 1


async def test_a_stream_tells_who_comes_back_in_time(house: House) -> None:
    device = await long_ago(house)
    async with stream(house, device.cursor) as reader:
        await wait_until(lambda: reader.changes() == [("b", 7), ("d", 8), ("g", 9), ("h", 10), ("i", 11)])
        # What is removed while it is open it has told.
        assert await pruner(house).prune() == 2
        await house.publish("j")
        await wait_until(lambda: reader.changes()[-1] == ("j", 12))
        assert reader.count(Reset) == 0


async def test_a_stream_from_the_start_passes_what_was_pruned(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hint_stream, "_PAGE_SIZE", 2)
    monkeypatch.setattr(checkpoint_schedule, "_NEWS_EVERY_S", 0.0)
    await long_ago(house)
    await pruner(house).prune()
    told = [("a", 1), ("c", 3), ("e", 5), ("f", 6), ("g", 9), ("h", 10), ("i", 11)]
    async with stream(house, Cursor("couple", "", 0)) as reader:
        await wait_until(lambda: reader.changes() == told)
        assert reader.count(Reset) == 0
        places = [event.cursors[0] for event in reader.events if isinstance(event, Checkpoint)]
    assert [place.sequence for place in places] == [3, 6, 10, 11]
    for place in places[:2]:  # where its client may break off
        async with stream(house, place) as reader:
            rest = told[2:] if place.sequence == 3 else told[4:]
            await wait_until(partial(said, reader, rest))
            assert reader.count(Reset) == 0


def said(reader: Reader, changes: list[tuple[str, int]]) -> bool:
    return reader.changes() == changes


# ----------------------------------------------------------------------------------------------------------- the chore


async def test_it_is_done_in_batches(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    await house.publish("a", "b", "c", "d", "e", deleted=True)
    await house.clock.advance(32 * DAY_S)
    async with house.database.connection() as conn:
        assert (await tombstones.remove_old(conn, 30.0, 2)).gone == 2
    assert await value_of(house.database, "SELECT count(*) FROM changes") == 3
    monkeypatch.setattr(prune_module, "_BATCH", 1)
    whole = asyncio.ensure_future(pruner(house).prune())
    await until(lambda: value_of(house.database, "SELECT count(*) = 0 FROM changes"), moving=house.clock)
    await house.clock.advance(1.0)
    assert await whole == 3
    assert await pruned(house) == 5


async def test_it_waits_an_hour_and_outlives_an_outage(house: House, database: Database) -> None:
    await house.publish("a", deleted=True)
    await house.clock.advance(32 * DAY_S)
    running = asyncio.ensure_future(pruner(house, database=house.refuses.as_database).run())
    try:
        await settle()
        house.refuses.error = DependencyDown("the database does not answer")
        await house.clock.advance(3590.0)
        assert house.refuses.refused == 0
        await house.clock.advance(20.0)
        assert house.refuses.refused == 1
        house.refuses.error = None
        await house.clock.advance(3600.0)
        await until(lambda: value_of(database, "SELECT count(*) = 0 FROM changes"))
    finally:
        running.cancel()
        await asyncio.wait([running])


async def test_several_processes_at_once_are_in_nobodys_way(house: House, database_urls: DatabaseUrls) -> None:
    names = [f"k{number}" for number in range(20)]
    for number in range(10):
        await house.publish(*names, scope=f"scope-{number}", deleted=True)
    await house.clock.advance(32 * DAY_S)
    async with open_database(database_urls.app_url, size=2, name="other") as other:
        prunings = [pruner(house), pruner(house, database=other), pruner(house), pruner(house, database=other)]
        removed = await asyncio.gather(*(one.prune() for one in prunings))
    left = await value_of(house.database, "SELECT count(*)::int FROM changes")
    assert sum(removed) == 200 - left
    assert await pruner(house).prune() == left
    marks = await rows_of(house.database, "SELECT DISTINCT pruned FROM scopes WHERE scope LIKE 'scope-%'")
    assert marks == [(20,)]


async def test_a_scope_that_is_written_now_is_left_for_later(house: House) -> None:
    await house.publish("a", "b", deleted=True)
    await house.publish("c", scope="other", deleted=True)
    await house.clock.advance(32 * DAY_S)
    async with house.database.transaction() as conn:
        revives = Append(APP, (NewChange("couple", "a", "1"),))
        await append(conn, [revives], lambda app_id: DEFAULT_TUNING.prior, create_scopes=False)
        assert await pruner(house).prune() == 1, "that of the other scope, without waiting"
    assert await pruner(house).prune() == 1
    assert await rows_of(house.database, "SELECT key, deleted FROM changes") == [("a", False)]
    assert await pruned(house) == 2


PAUSED_CLOCK = """CREATE OR REPLACE FUNCTION syncbeat_now() RETURNS timestamptz LANGUAGE plpgsql STABLE AS $$
BEGIN
    IF current_setting('application_name') = 'paused' THEN PERFORM pg_advisory_xact_lock_shared(1); END IF;
    RETURN (SELECT at FROM test_clock);
END $$"""


async def test_a_key_that_came_back_since_the_look_is_spared(house: House, database_urls: DatabaseUrls) -> None:
    await house.publish("a", "b", deleted=True)
    await house.clock.advance(32 * DAY_S)
    await run_sql(database_urls.owner_url, PAUSED_CLOCK)
    async with open_database(database_urls.app_url, size=1, name="paused") as paused:
        async with house.database.transaction() as conn:
            await conn.execute("SELECT pg_advisory_xact_lock(1)")
            removing = asyncio.ensure_future(pruner(house, database=paused).prune())
            waits = "SELECT count(*) = 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            await until(lambda: value_of(house.database, waits), what="it has begun, and looks at what it saw then")
            await house.publish("a")
        assert await removing == 1
    assert await rows_of(house.database, "SELECT key, deleted FROM changes") == [("a", False)]


async def test_an_index_finds_them(house: House, database_urls: DatabaseUrls) -> None:
    await house.publish("dead", deleted=True)
    await run_sql(
        database_urls.admin_url,
        """INSERT INTO changes (app_id, scope, key, value, sequence, changed_at)
           SELECT 'default', 'couple', 'k' || n, '1', 10 + n, syncbeat_now() FROM generate_series(1, 20000) n""",
        "ANALYZE changes",
    )
    await house.clock.advance(32 * DAY_S)
    explained = f"EXPLAIN {tombstones.REMOVE_OLD}"
    plan = [line for (line,) in await rows_of(house.database, explained, 30.0, 1_000, BEGINNING)]
    assert any("changes_tombstones" in line for line in plan), plan
    assert not any("Seq Scan on changes" in line for line in plan), plan


# ------------------------------------------------------------------------------------------------- writers and cursors


async def test_a_key_whose_tombstone_is_gone_is_not_there(house: House) -> None:
    await house.publish("a")
    await house.publish("a", deleted=True)

    async def publish(expected: int) -> tuple[int, ...]:
        change = NewChange("couple", "a", '{"again": true}', expected_sequence=expected)
        made = await house.publisher.publish(Publish(APP, "service:test", (change,), None, None, "", b""))
        return made.sequences

    with pytest.raises(SequenceMismatch) as refused:
        await publish(0)
    assert refused.value.metadata["sequence"] == "2"
    await house.clock.advance(32 * DAY_S)
    await pruner(house).prune()
    for past in (1, 2):
        with pytest.raises(SequenceMismatch) as refused:
            await publish(past)
        assert refused.value.metadata["sequence"] == "0"
    assert await publish(0) == (3,)
    assert await rows_of(house.database, "SELECT value::text FROM changes") == [('{"again": true}',)]
