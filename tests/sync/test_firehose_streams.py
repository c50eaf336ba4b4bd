"""Streams of a whole app: from a token on everything comes, once, and of each scope in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import asyncpg
import pytest

from syncbeat_server.errors import DependencyDown, NotFound, SyncbeatError
from syncbeat_server.events.publish import Publish
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.storage.postgres.driver_errors import TooManyWait
from syncbeat_server.sync.content.firehose_token import decode
from syncbeat_server.sync.feed.writer import Append, append
from syncbeat_server.sync.model import Activity, ChangesSent, Checkpoint, Cursor, Drain, Hint, NewChange, Reset
from syncbeat_server.sync.policy import DEFAULT_TUNING
from syncbeat_server.sync.streams.firehose_stream import FirehoseRequest
from syncbeat_server.sync.streams.stream_context import StreamRule
from tests.support.build import APP, SyncFeature
from tests.support.databases import DatabaseUrls, run_sql
from tests.support.fake_clock import FakeClock, wait_until
from tests.support.seed import couple, rows_of
from tests.support.sync_streams import Reader, came, let_in, publish_to, reading, token_of_now, whole

pytestmark = [pytest.mark.store, pytest.mark.usefixtures("database", "clock")]


@pytest.fixture
async def sync(database: Database, clock: FakeClock) -> SyncFeature:
    await couple(database)
    return SyncFeature(database, clock)


# ------------------------------------------------------------------------------------------------------- what it brings


async def test_firehose_from_now_brings_what_is_new_once_and_in_order(sync: SyncFeature) -> None:
    await sync.publish("old")
    async with whole(sync) as reader:
        await sync.publish("a", "b")
        await sync.publish("x", scope="new")
        await came(reader, ("couple", 2), ("couple", 3), ("new", 1))
        await sync.publish("a")
        await came(reader, ("couple", 2), ("couple", 3), ("new", 1), ("couple", 4))


async def test_firehose_resumes_with_a_scope_whose_only_change_fell_while_it_was_away(sync: SyncFeature) -> None:
    async with whole(sync) as reader:
        await sync.publish("a")
        await came(reader, ("couple", 1))
        await wait_until(lambda: reader.events[-1].__class__ is Checkpoint)
        token = reader.token
    await sync.publish("only", scope="new")
    await sync.publish("a", "b")
    await sync.publish("a")
    async with whole(sync, token) as reader:
        await came(reader, ("couple", 3), ("couple", 4), ("new", 1))
        assert reader.count(Reset) == 0
        await sync.publish("later", scope="new")
        await came(reader, ("couple", 3), ("couple", 4), ("new", 1), ("new", 2))


async def test_firehose_slow_reader_misses_nothing(sync: SyncFeature) -> None:
    names = [f"scope-{number:05}" for number in range(3_000)]
    request = FirehoseRequest(APP, "", (), Activity(), 30.0, None, let_in)
    events = sync.firehose.watch(request)
    seen: list[str] = []
    try:
        while not isinstance(await anext(events), Checkpoint):
            pass
        await publish_to(sync, names)  # nobody reads meanwhile
        async with asyncio.timeout(60):
            while len(seen) < len(names):
                event = await anext(events)
                if isinstance(event, ChangesSent):
                    seen += [change.scope for change in event.changes]
    finally:
        await events.aclose()
    assert sorted(seen) == names


async def test_firehose_finds_changes_without_wake_up_within_its_look(sync: SyncFeature) -> None:
    sync = sync.under(streams=StreamRule(look_every_s=0.05))
    sync.publish_quietly()
    async with whole(sync) as reader:
        await sync.publish("a")
        await came(reader, ("couple", 1))


@pytest.mark.parametrize("shift_s", [-30, 30])
async def test_firehose_order_uses_no_clock(sync: SyncFeature, database_urls: DatabaseUrls, shift_s: int) -> None:
    token = await token_of_now(sync)
    await run_sql(database_urls.owner_url, f"UPDATE test_clock SET at = at + make_interval(secs => {shift_s})")
    await sync.publish("a")
    async with whole(sync, token) as reader:
        await came(reader, ("couple", 1))
        await sync.publish("b")
        await came(reader, ("couple", 1), ("couple", 2))


@pytest.mark.parametrize("error", [DependencyDown("the database does not answer"), TooManyWait(0.5)])
async def test_firehose_survives_a_database_that_is_away_or_overloaded(sync: SyncFeature, error: SyncbeatError) -> None:
    sync = sync.under(streams=StreamRule(retry_s=0.01))
    async with whole(sync) as reader:
        sync.failing.error = error
        await sync.publish("a", scope="never heard of")
        await wait_until(lambda: sync.failing.refused > 2)
        sync.failing.error = None
        await came(reader, ("never heard of", 1))


async def test_firehose_brings_what_users_and_earlier_servers_write(sync: SyncFeature) -> None:
    token = await token_of_now(sync)
    by_user = Publish(APP, "user:ann", (NewChange("couple", "a", "{}"),), None, "ann", "", b"")
    await sync.publisher.publish(by_user)
    async with whole(sync, token) as reader:
        await came(reader, ("couple", 1))
        await sync.publisher.publish(by_user)
        await came(reader, ("couple", 1), ("couple", 2))
        async with sync.database.transaction() as conn:  # as a version does that does not know of the column
            await conn.execute("UPDATE scopes SET head = 4 WHERE scope = 'couple'")
            await conn.execute(
                """INSERT INTO changes AS c (app_id, scope, key, value, deleted, sequence, changed_at)
                   VALUES ('default', 'couple', 'a', '1', false, 3, syncbeat_now()),
                          ('default', 'couple', 'new', '1', false, 4, syncbeat_now())
                   ON CONFLICT (app_id, scope, key)
                   DO UPDATE SET value = excluded.value, sequence = excluded.sequence"""
            )
        sync.hub.scope_changed(APP, "couple")
        await came(reader, ("couple", 1), ("couple", 2), ("couple", 3), ("couple", 4))


async def test_firehose_keeps_to_its_app(sync: SyncFeature) -> None:
    token = await token_of_now(sync)
    other = Publish("other", "service:test", (NewChange("couple", "a", "{}"),), None, None, "", b"")
    await sync.publisher.publish(other)
    async with whole(sync, token) as reader:
        await sync.publish("mine")
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
async def test_firehose_does_not_wait_for_open_transactions(
    sync: SyncFeature, database_urls: DatabaseUrls, statement: str
) -> None:
    before = await token_of_now(sync)
    async with held(database_urls, statement):
        async with whole(sync, before) as reader:
            await sync.publish("a")
            await came(reader, ("couple", 1))
            await wait_until(lambda: isinstance(reader.events[-1], Checkpoint))
            token = reader.token
        async with whole(sync, token) as reader:
            await sync.publish("b")
            await came(reader, ("couple", 2))
    async with whole(sync, token) as reader:
        await came(reader, ("couple", 2))


async def publish_in(conn: Any, scope: str, key: str) -> None:
    await append(
        conn, [Append(APP, (NewChange(scope, key, "{}"),))], lambda app: DEFAULT_TUNING.prior, create_scopes=True
    )


async def test_firehose_brings_late_commits_with_early_numbers(sync: SyncFeature) -> None:
    async with whole(sync) as reader:
        async with sync.database.transaction() as late:
            await late.execute("SELECT pg_current_xact_id()")
            await publish_in(late, "slow", "a")
            await sync.publish("b", scope="quick")
            await came(reader, ("quick", 1))
            await wait_until(lambda: isinstance(reader.events[-1], Checkpoint))
            token = reader.token
        sync.hub.scope_changed(APP, "slow")
        await came(reader, ("quick", 1), ("slow", 1))
    async with whole(sync, token) as reader:
        await came(reader, ("slow", 1))


async def test_firehose_keeps_scope_order_despite_transaction_numbers(sync: SyncFeature) -> None:
    token = await token_of_now(sync)
    async with whole(sync) as reader, sync.database.transaction() as early:
        await early.execute("SELECT pg_current_xact_id()")
        await sync.publish("a")  # of a later transaction, with the lower sequence
        await came(reader, ("couple", 1))
        between = reader
        await publish_in(early, "couple", "b")
    numbers = await rows_of(sync.database, "SELECT sequence, xid::text::bigint FROM changes ORDER BY sequence")
    assert numbers[0][1] > numbers[1][1], "otherwise this test shows nothing"
    async with whole(sync, token) as reader:
        await came(reader, ("couple", 1), ("couple", 2))
    async with whole(sync, between.token) as reader:
        await came(reader, ("couple", 2))


async def _publish_and_fail(sync: SyncFeature) -> None:
    async with sync.database.transaction() as conn:
        await publish_in(conn, "couple", "a")
        raise DependencyDown("the connection was lost")


async def test_firehose_ignores_rolled_back_changes(sync: SyncFeature) -> None:
    async with whole(sync) as reader:
        with pytest.raises(DependencyDown):
            await _publish_and_fail(sync)
        await sync.publish("b")
        await came(reader, ("couple", 1))
        assert reader.changes() == [("b", 1)]


# -------------------------------------------------------------------------------------------------------------- cursors


def cursors_of(reader: Reader) -> set[tuple[str, int | None]]:
    (*_, last) = [event.cursors for event in reader.events if isinstance(event, Checkpoint)]
    return {(cursor.scope, cursor.sequence) for cursor in last}


async def test_firehose_without_a_token_uses_cursors(sync: SyncFeature) -> None:
    sync = sync.under(streams=StreamRule(cursors_every_s=0.0))
    await sync.publish("a", "b")
    await sync.publish("x", scope="other")
    async with whole(sync, None, Cursor("couple", "", 1), Cursor("other")) as reader:
        await came(reader, ("couple", 2))
        await sync.publish("c")
        await sync.publish("y", scope="other")
        await sync.publish("z", scope="third")
        await came(reader, ("couple", 2), ("couple", 3), ("other", 2), ("third", 1))
        await wait_until(lambda: cursors_of(reader) == {("couple", 3), ("other", 2), ("third", 1)})
        assert reader.token == ""


async def test_firehose_from_cursors_repeats_nothing_and_issues_tokens_on_request(sync: SyncFeature) -> None:
    await sync.publish("a", "b")
    before = decode(APP, await token_of_now(sync))
    request = FirehoseRequest(APP, "", (Cursor("couple", "", 1),), Activity(), 30.0, None, let_in)
    events = sync.firehose.watch(request)
    assert isinstance(await anext(events), Hint)
    # Its first round begins before this, which the cursors are answered with.
    head = await sync.publish("c")
    async with reading(events) as reader:
        await sync.publish("d")
        await came(reader, ("couple", 2), ("couple", 3), ("couple", 4))
        await wait_until(lambda: isinstance(reader.events[-1], Checkpoint))
        assert decode(APP, reader.token).since != before.since
    assert head.sequence == 3


async def test_firehose_from_an_unresumable_cursor_resets_that_scope(sync: SyncFeature) -> None:
    head = await sync.publish("a")
    async with whole(sync, None, Cursor("couple", "another", 1)) as reader:
        assert [event.head for event in reader.events if isinstance(event, Reset)] == [head]
        await sync.publish("b")
        await came(reader, ("couple", 2))
    async with whole(sync, None, Cursor("nowhere", "", 1)) as reader:
        assert isinstance(reader.error, NotFound)


async def test_firehose_by_cursors_ends_when_its_database_changed(
    sync: SyncFeature, database_urls: DatabaseUrls
) -> None:
    head = await sync.publish("a")
    async with whole(sync, None, head) as reader:
        await run_sql(
            database_urls.owner_url,
            "CREATE OR REPLACE FUNCTION syncbeat_feed_identity() RETURNS text LANGUAGE sql AS $$ SELECT 'other' $$",
        )
        sync.hub.invalidate_all()
        await wait_until(lambda: reader.ended)
        assert isinstance(reader.events[-1], Drain)
        assert cursors_of(reader) == {("couple", 1)}, "what it is to come back with"


async def test_firehose_cursors_are_bounded(sync: SyncFeature) -> None:
    sync = sync.under(streams=StreamRule(cursors_every_s=0.0, max_cursors=3))
    async with whole(sync, None) as reader:
        for number in range(5):
            await sync.publish("k", scope=f"s{number}")
        await wait_until(lambda: cursors_of(reader) == {("s2", 1), ("s3", 1), ("s4", 1)})
        assert len(reader.places()) == 5


async def test_firehose_splits_many_cursors_over_checkpoints(sync: SyncFeature) -> None:
    sync = sync.under(streams=StreamRule(cursors_every_s=0.0))
    names = [f"{number:05}".rjust(115, "s") for number in range(9_000)]
    async with whole(sync, None) as reader:
        await publish_to(sync, names)
        await wait_until(lambda: len(reader.places()) == len(names), 60.0)
        before = len(reader.events)
        sync.hub.drain()
        await wait_until(lambda: reader.ended)
    parts = [event.cursors for event in reader.events[before:] if isinstance(event, Checkpoint)][-3:]
    assert [len(part) for part in parts] == [4_000, 4_000, 1_000]
    assert {cursor.scope for part in parts for cursor in part} == {*names}
    assert isinstance(reader.events[-1], Drain)


async def test_firehose_drain_gives_a_resumable_token(sync: SyncFeature) -> None:
    async with whole(sync) as reader:
        await sync.publish("a")
        await came(reader, ("couple", 1))
        sync.hub.drain()
        await wait_until(lambda: reader.ended)
        assert isinstance(reader.events[-1], Drain)
        token = reader.token
    sync.hub.draining = False
    await sync.publish("b")
    async with whole(sync, token) as reader:
        await came(reader, ("couple", 2))
    assert len(sync.hub) == 0
