"""Streams of a whole app: from a token on everything comes, once, and of each scope in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import asyncpg
import pytest

from syncbeat_server.errors import DependencyDown, NotFound
from syncbeat_server.events.publish import Publish
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.sync.content.firehose_token import FeedPosition, decode
from syncbeat_server.sync.feed.writer import Append, append
from syncbeat_server.sync.model import Activity, ChangesSent, Checkpoint, Cursor, Drain, NewChange, Reset
from syncbeat_server.sync.policy import DEFAULT_TUNING
from syncbeat_server.sync.streams import firehose_stream
from syncbeat_server.sync.streams.firehose_stream import FirehoseRequest
from tests.conftest import DatabaseUrls, run_sql
from tests.fakes import FakeClock, wait_until
from tests.storage.house import House, Reader, came, let_in, publish_to, token_of_now, whole
from tests.storage.stage import APP, couple, new_publisher, rows_of

pytestmark = pytest.mark.usefixtures("database", "clock")


@pytest.fixture
async def house(database: Database, clock: FakeClock) -> House:
    await couple(database)
    return House(database, clock)


# ------------------------------------------------------------------------------------------------------- what it brings


async def test_a_firehose_from_now_brings_what_is_new_once_and_in_order(house: House) -> None:
    await house.publish("old")
    async with whole(house) as reader:
        await house.publish("a", "b")
        await house.publish("x", scope="new")
        await came(reader, ("couple", 2), ("couple", 3), ("new", 1))
        await house.publish("a")
        await came(reader, ("couple", 2), ("couple", 3), ("new", 1), ("couple", 4))


async def test_a_firehose_resumes_with_a_scope_whose_only_change_fell_while_it_was_away(house: House) -> None:
    async with whole(house) as reader:
        await house.publish("a")
        await came(reader, ("couple", 1))
        await wait_until(lambda: reader.events[-1].__class__ is Checkpoint)
        token = reader.token
    await house.publish("only", scope="new")
    await house.publish("a", "b")
    await house.publish("a")
    async with whole(house, token) as reader:
        await came(reader, ("couple", 3), ("couple", 4), ("new", 1))
        assert reader.count(Reset) == 0
        await house.publish("later", scope="new")
        await came(reader, ("couple", 3), ("couple", 4), ("new", 1), ("new", 2))


async def test_a_firehose_of_a_reader_that_stalls_while_many_scopes_change_misses_none(house: House) -> None:
    names = [f"scope-{number:05}" for number in range(3_000)]
    request = FirehoseRequest(APP, "", (), Activity(), 30.0, None, let_in)
    events = house.firehose.watch(request)
    seen: list[str] = []
    try:
        while not isinstance(await anext(events), Checkpoint):
            pass
        await publish_to(house, names)  # nobody reads meanwhile
        async with asyncio.timeout(60):
            while len(seen) < len(names):
                event = await anext(events)
                if isinstance(event, ChangesSent):
                    seen += [change.scope for change in event.changes]
    finally:
        await events.aclose()
    assert sorted(seen) == names


async def test_a_firehose_brings_what_no_wake_up_told_within_its_look(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(firehose_stream, "_LOOK_EVERY_S", 0.05)
    house.publisher = new_publisher(house.database, house.clock)
    async with whole(house) as reader:
        await house.publish("a")
        await came(reader, ("couple", 1))


@pytest.mark.parametrize("shift_s", [-30, 30])
async def test_a_firehose_asks_no_clock_which_change_is_newer(
    house: House, database_urls: DatabaseUrls, shift_s: int
) -> None:
    token = await token_of_now(house)
    await run_sql(database_urls.owner_url, f"UPDATE test_clock SET at = at + make_interval(secs => {shift_s})")
    await house.publish("a")
    async with whole(house, token) as reader:
        await came(reader, ("couple", 1))
        await house.publish("b")
        await came(reader, ("couple", 1), ("couple", 2))


async def test_a_firehose_outlives_an_outage_and_misses_nothing(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(firehose_stream, "RETRY_S", 0.01)
    async with whole(house) as reader:
        house.refuses.error = DependencyDown("the database does not answer")
        await house.publish("a", scope="never heard of")
        await wait_until(lambda: house.refuses.refused > 2)
        house.refuses.error = None
        await came(reader, ("never heard of", 1))


async def test_a_firehose_brings_what_users_and_earlier_servers_write(house: House) -> None:
    token = await token_of_now(house)
    by_user = Publish(APP, "user:ann", (NewChange("couple", "a", "{}"),), None, "ann", "", b"")
    await house.publisher.publish(by_user)
    async with whole(house, token) as reader:
        await came(reader, ("couple", 1))
        await house.publisher.publish(by_user)
        await came(reader, ("couple", 1), ("couple", 2))
        async with house.database.transaction() as conn:  # as a version does that does not know of the column
            await conn.execute("UPDATE scopes SET head = 4 WHERE scope = 'couple'")
            await conn.execute(
                """INSERT INTO changes AS c (app_id, scope, key, value, deleted, sequence, changed_at)
                   VALUES ('default', 'couple', 'a', '1', false, 3, syncbeat_now()),
                          ('default', 'couple', 'new', '1', false, 4, syncbeat_now())
                   ON CONFLICT (app_id, scope, key)
                   DO UPDATE SET value = excluded.value, sequence = excluded.sequence"""
            )
        house.hub.scope_changed(APP, "couple")
        await came(reader, ("couple", 1), ("couple", 2), ("couple", 3), ("couple", 4))


async def test_a_firehose_keeps_to_its_app(house: House) -> None:
    token = await token_of_now(house)
    other = Publish("other", "service:test", (NewChange("couple", "a", "{}"),), None, None, "", b"")
    await house.publisher.publish(other)
    async with whole(house, token) as reader:
        await house.publish("mine")
        await came(reader, ("couple", 1))


# ----------------------------------------------------------------------------------------------- transactions that stay


@asynccontextmanager
async def held(urls: DatabaseUrls, *statements: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    """A foreign transaction that stays open for the block."""
    conn = await asyncpg.connect(urls.admin_url)
    try:
        await conn.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        for statement in statements:
            await conn.execute(statement)
        yield conn
    finally:
        with suppress(asyncpg.PostgresError):
            await conn.execute("ROLLBACK")
        await conn.close()


@pytest.mark.parametrize(
    "statement", ["SELECT count(*) FROM changes", "SELECT pg_current_xact_id()"], ids=["a snapshot", "a number"]
)
async def test_a_firehose_waits_for_no_transaction_that_stays_open(
    house: House, database_urls: DatabaseUrls, statement: str
) -> None:
    before = await token_of_now(house)
    async with held(database_urls, statement):
        async with whole(house, before) as reader:
            await house.publish("a")
            await came(reader, ("couple", 1))
            await wait_until(lambda: isinstance(reader.events[-1], Checkpoint))
            token = reader.token
        async with whole(house, token) as reader:
            await house.publish("b")
            await came(reader, ("couple", 2))
    async with whole(house, token) as reader:
        await came(reader, ("couple", 2))


async def publish_in(conn: Any, scope: str, key: str) -> None:
    await append(
        conn, [Append(APP, (NewChange(scope, key, "{}"),))], lambda app: DEFAULT_TUNING.prior, create_scopes=True
    )


async def test_a_firehose_brings_what_commits_late_although_it_was_numbered_early(house: House) -> None:
    async with whole(house) as reader:
        async with house.database.transaction() as late:
            await late.execute("SELECT pg_current_xact_id()")
            await publish_in(late, "slow", "a")
            await house.publish("b", scope="quick")
            await came(reader, ("quick", 1))
            await wait_until(lambda: isinstance(reader.events[-1], Checkpoint))
            token = reader.token
        house.hub.scope_changed(APP, "slow")
        await came(reader, ("quick", 1), ("slow", 1))
    async with whole(house, token) as reader:
        await came(reader, ("slow", 1))


async def test_a_firehose_keeps_the_order_of_a_scope_where_numbers_of_transactions_do_not(house: House) -> None:
    token = await token_of_now(house)
    async with whole(house) as reader, house.database.transaction() as early:
        await early.execute("SELECT pg_current_xact_id()")
        await house.publish("a")  # of a later transaction, with the lower sequence
        await came(reader, ("couple", 1))
        between = reader
        await publish_in(early, "couple", "b")
    numbers = await rows_of(house.database, "SELECT sequence, xid::text::bigint FROM changes ORDER BY sequence")
    assert numbers[0][1] > numbers[1][1], "otherwise this test shows nothing"
    async with whole(house, token) as reader:
        await came(reader, ("couple", 1), ("couple", 2))
    async with whole(house, between.token) as reader:
        await came(reader, ("couple", 2))


async def _publish_and_fail(house: House) -> None:
    async with house.database.transaction() as conn:
        await publish_in(conn, "couple", "a")
        raise DependencyDown("the connection was lost")


async def test_a_firehose_is_told_nothing_of_what_was_rolled_back(house: House) -> None:
    async with whole(house) as reader:
        with pytest.raises(DependencyDown):
            await _publish_and_fail(house)
        await house.publish("b")
        await came(reader, ("couple", 1))
        assert reader.changes() == [("b", 1)]


# -------------------------------------------------------------------------------------------------------------- cursors


def cursors_of(reader: Reader) -> set[tuple[str, int | None]]:
    (*_, last) = [event.cursors for event in reader.events if isinstance(event, Checkpoint)]
    return {(cursor.scope, cursor.sequence) for cursor in last}


async def test_a_firehose_without_a_token_goes_by_cursors_as_ever(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(firehose_stream, "_CURSORS_EVERY_S", 0.0)
    await house.publish("a", "b")
    await house.publish("x", scope="other")
    async with whole(house, None, Cursor("couple", "", 1), Cursor("other")) as reader:
        await came(reader, ("couple", 2))
        await house.publish("c")
        await house.publish("y", scope="other")
        await house.publish("z", scope="third")
        await came(reader, ("couple", 2), ("couple", 3), ("other", 2), ("third", 1))
        await wait_until(lambda: cursors_of(reader) == {("couple", 3), ("other", 2), ("third", 1)})
        assert reader.token == ""


async def test_a_firehose_from_cursors_tells_nothing_twice_and_answers_tokens_where_they_are_asked_for(
    house: House,
) -> None:
    await house.publish("a", "b")
    token = await token_of_now(house)
    head = await house.publish("c")
    place = decode(APP, token)
    # A round that begins before what the cursors are answered with.
    house.firehose._current_position = partial(_just, place)  # type: ignore[method-assign]  # it begins there
    async with whole(house, "", Cursor("couple", "", 1)) as reader:
        await house.publish("d")
        await came(reader, ("couple", 2), ("couple", 3), ("couple", 4))
        await wait_until(lambda: isinstance(reader.events[-1], Checkpoint))
        assert decode(APP, reader.token).since != place.since
    assert head.sequence == 3


async def _just(place: FeedPosition, app_id: str) -> FeedPosition:
    return place


async def test_a_firehose_from_a_cursor_that_cannot_be_gone_on_from_is_reset_in_that_scope(house: House) -> None:
    head = await house.publish("a")
    async with whole(house, None, Cursor("couple", "another", 1)) as reader:
        assert [event.head for event in reader.events if isinstance(event, Reset)] == [head]
        await house.publish("b")
        await came(reader, ("couple", 2))
    async with whole(house, None, Cursor("nowhere", "", 1)) as reader:
        assert isinstance(reader.error, NotFound)


async def test_a_firehose_by_cursors_is_sent_away_when_its_database_is_another(
    house: House, database_urls: DatabaseUrls
) -> None:
    head = await house.publish("a")
    async with whole(house, None, head) as reader:
        await run_sql(
            database_urls.owner_url,
            "CREATE OR REPLACE FUNCTION syncbeat_feed_identity() RETURNS text LANGUAGE sql AS $$ SELECT 'other' $$",
        )
        house.hub.invalidate_all()
        await wait_until(lambda: reader.ended)
        assert isinstance(reader.events[-1], Drain)
        assert cursors_of(reader) == {("couple", 1)}, "what it is to come back with"


async def test_a_firehose_keeps_a_bounded_number_of_cursors(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(firehose_stream, "_CURSORS_EVERY_S", 0.0)
    monkeypatch.setattr(firehose_stream, "_MAX_CURSORS", 3)
    async with whole(house, None) as reader:
        for number in range(5):
            await house.publish("k", scope=f"s{number}")
        await wait_until(lambda: cursors_of(reader) == {("s2", 1), ("s3", 1), ("s4", 1)})
        assert len(reader.places()) == 5


async def test_a_firehose_divides_very_many_cursors_between_checkpoints(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(firehose_stream, "_CURSORS_EVERY_S", 0.0)
    names = [f"{number:05}".rjust(115, "s") for number in range(9_000)]
    async with whole(house, None) as reader:
        await publish_to(house, names)
        await wait_until(lambda: len(reader.places()) == len(names), 60.0)
        before = len(reader.events)
        house.hub.drain()
        await wait_until(lambda: reader.ended)
    parts = [event.cursors for event in reader.events[before:] if isinstance(event, Checkpoint)][-3:]
    assert [len(part) for part in parts] == [4_000, 4_000, 1_000]
    assert {cursor.scope for part in parts for cursor in part} == {*names}
    assert isinstance(reader.events[-1], Drain)


async def test_a_firehose_is_drained_with_a_token_that_it_goes_on_from(house: House) -> None:
    async with whole(house) as reader:
        await house.publish("a")
        await came(reader, ("couple", 1))
        house.hub.drain()
        await wait_until(lambda: reader.ended)
        assert isinstance(reader.events[-1], Drain)
        token = reader.token
    house.hub.draining = False
    await house.publish("b")
    async with whole(house, token) as reader:
        await came(reader, ("couple", 2))
    assert len(house.hub) == 0
