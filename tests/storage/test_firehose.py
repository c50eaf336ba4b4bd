"""Streams of a whole app: from a token on everything comes, once, and of each scope in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import asyncpg
import pytest

from syncbeat_server.errors import DependencyDown, InvalidRequest, NotFound
from syncbeat_server.events.publish import Publish, Publisher
from syncbeat_server.storage.postgres import Database
from syncbeat_server.sync import firehose, rounds
from syncbeat_server.sync.append import Append, append
from syncbeat_server.sync.firehose import FirehoseRequest
from syncbeat_server.sync.model import Activity, ChangesSent, Checkpoint, Cursor, Drain, NewChange, Reset, StreamEvent
from syncbeat_server.sync.policy import DEFAULT_TUNING
from tests.conftest import DatabaseUrls, run_sql
from tests.fakes import FakeClock, wait_until
from tests.storage.house import House, Reader, let_in, whole
from tests.storage.stage import APP, couple, default_tuning, rows_of, value_of

pytestmark = pytest.mark.usefixtures("database", "clock")


@pytest.fixture
async def house(database: Database, clock: FakeClock) -> House:
    await couple(database)
    return House(database, clock)


async def came(reader: Reader, *places: tuple[str, int]) -> None:
    """Return when these have come, and nothing else; in this order."""
    await wait_until(lambda: len(reader.places()) >= len(places), what=f"{reader.places()} of {places}")
    assert reader.places() == list(places)


async def token_of_now(house: House) -> str:
    async with whole(house) as reader:
        return reader.token


async def publish_many(house: House, scopes: Sequence[str], key: str = "k", patch: str = "{}") -> None:
    for start in range(0, len(scopes), 1_000):
        changes = tuple(NewChange(scope, key, patch) for scope in scopes[start : start + 1_000])
        await house.publisher.publish(Publish(APP, "service:test", changes, None, None, "", b""))


async def end_of(house: House) -> dict[str, int]:
    """The head of every scope."""
    return dict((name, head) for name, head in await rows_of(house.database, "SELECT scope, head FROM scopes"))


# -------------------------------------------------------------------------------------------------------- what it brings


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
        await publish_many(house, names)  # nobody reads meanwhile
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
    monkeypatch.setattr(firehose, "_LOOK_S", 0.05)
    house.publisher = Publisher(house.database, house.clock, default_tuning, lambda app_id, scope: None, lambda: None)
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
    monkeypatch.setattr(firehose, "RETRY_S", 0.01)
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
                   ON CONFLICT (app_id, scope, key) DO UPDATE SET value = excluded.value, sequence = excluded.sequence"""
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


# ------------------------------------------------------------------------------------------------ transactions that stay


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


async def test_a_firehose_is_told_nothing_of_what_was_rolled_back(house: House) -> None:
    async with whole(house) as reader:
        with pytest.raises(RuntimeError):
            async with house.database.transaction() as conn:
                await publish_in(conn, "couple", "a")
                raise RuntimeError
        await house.publish("b")
        await came(reader, ("couple", 1))
        assert reader.changes() == [("b", 1)]


# ----------------------------------------------------------------------------------------------------------------- pages


async def pages_from(house: House, token: str) -> AsyncIterator[tuple[list[tuple[str, int]], str]]:
    """Between two checkpoints: the changes, and the token after them."""
    events = house.firehose.watch(FirehoseRequest(APP, token, (), Activity(), 30.0, None, let_in))
    changes: list[tuple[str, int]] = []
    try:
        async with asyncio.timeout(60):
            async for event in events:
                if isinstance(event, ChangesSent):
                    changes += [(change.scope, change.sequence) for change in event.changes]
                elif isinstance(event, Checkpoint):
                    yield changes, event.token
                    changes = []
    finally:
        await events.aclose()


async def first_page(house: House, token: str) -> tuple[list[tuple[str, int]], str]:
    async for page in pages_from(house, token):
        return page
    raise AssertionError("there is no page")


async def test_a_long_catch_up_can_be_broken_off_after_each_page(house: House) -> None:
    token = await token_of_now(house)
    names = [f"scope-{number:04}" for number in range(2 * rounds.MAX_CHANGES + 10)]
    await publish_many(house, names)
    whole_pages = []
    for _ in range(3):
        page, token = await first_page(house, token)
        whole_pages.append(len(page))
        assert [scope for scope, _ in page] == names[: len(page)]
        names = names[len(page) :]
        await house.publish("meanwhile", scope="scope-0000")  # is of the round after
    assert whole_pages == [rounds.MAX_CHANGES, rounds.MAX_CHANGES, 10]
    page, token = await first_page(house, token)
    assert page == [("scope-0000", 4)], "what was published thrice has one newest change"
    assert len(token) < 300


async def test_a_page_ends_at_a_mebibyte_and_holds_one_value_at_least(house: House) -> None:
    token = await token_of_now(house)
    large = '"' + "x" * 250_000 + '"'
    await publish_many(house, [f"s{number}" for number in range(10)], patch=large)
    held_at_once = [len(changes) for changes, _ in [page async for page in _three(house, token)]]
    assert held_at_once == [4, 4, 2]
    token = await token_of_now(house)
    for number in range(2):
        patch = '{"%d": %s, "%dx": %s}' % (number, large, number, large)  # noqa: UP031  # braces of its own
        for scope in ("huge", "huger"):
            await publish_many(house, [scope], patch=patch)
    sizes = [len(changes) for changes, _ in [page async for page in _three(house, token)]]
    assert sizes[:2] == [1, 1]


async def _three(house: House, token: str) -> AsyncIterator[tuple[list[tuple[str, int]], str]]:
    for _ in range(3):
        page = await first_page(house, token)
        token = page[1]
        yield page


async def add_rows(urls: DatabaseUrls, many: int, keys: int = 5) -> None:
    """As if each of so many rows had been published, all in one transaction."""
    await run_sql(
        urls.admin_url,
        f"""INSERT INTO scopes (app_id, scope, head, created_at)
            SELECT 'default', 'bulk-' || lpad(n::text, 6, '0'), {keys}, syncbeat_now()
            FROM generate_series(1, {many // keys}) n""",
        f"""INSERT INTO changes (app_id, scope, key, value, sequence, changed_at)
            SELECT 'default', 'bulk-' || lpad(n::text, 6, '0'), 'k' || k, '1', k, syncbeat_now()
            FROM generate_series(1, {many // keys}) n, generate_series(1, {keys}) k""",
    )


async def test_a_catch_up_of_very_many_changes_passes_the_whole_feed_and_can_be_broken_off(
    house: House, database_urls: DatabaseUrls
) -> None:
    await add_rows(database_urls, 30_000)
    token = await token_of_now(house)
    await run_sql(
        database_urls.admin_url,
        "UPDATE changes SET sequence = sequence + 5 WHERE scope <> 'bulk-000007'",
        "UPDATE scopes SET head = 10 WHERE scope LIKE 'bulk-%'",
    )
    expected = [(f"bulk-{scope:06}", sequence) for scope in range(1, 6_001) if scope != 7 for sequence in range(6, 11)]
    assert len(expected) > rounds.MOST_ENTRIES
    found: list[tuple[str, int]] = []
    async for changes, after in pages_from(house, token):
        found += changes
        token = after
        if len(found) > 3_000:
            break
    await house.publish("meanwhile", scope="bulk-000001")
    async for changes, _ in pages_from(house, token):
        found += changes
        if len(found) > len(expected):
            break
    assert found == [*expected, ("bulk-000001", 11)]


async def test_a_round_is_found_by_its_index_however_large_the_feed_is(
    house: House, database_urls: DatabaseUrls
) -> None:
    await add_rows(database_urls, 30_000)
    await run_sql(database_urls.admin_url, "ANALYZE changes, scopes")
    now = await value_of(house.database, "SELECT pg_current_snapshot()::text")
    plan = [
        line for (line,) in await rows_of(house.database, f"EXPLAIN {rounds.BY_TRANSACTION}", APP, now, None, "", 0)
    ]
    assert sum("changes_by_xid" in line for line in plan) >= 2, plan
    assert not any("Seq Scan on changes" in line for line in plan), plan
    assert any("Tid Scan on changes" in line for line in plan), plan
    plan = [line for (line,) in await rows_of(house.database, f"EXPLAIN {rounds.IN_ORDER}", APP, now, None, "b", 0)]
    assert not any("Seq Scan on changes" in line for line in plan), plan
    assert any("changes_by_sequence" in line for line in plan), plan


# ---------------------------------------------------------------------------------------------------------------- resets


async def reset_by(house: House, token: str) -> Any:
    """The answer to a token that cannot be gone on from; after it the stream goes on from now."""
    async with whole(house, token) as reader:
        (reset,) = [event for event in reader.events if isinstance(event, rounds_reset())]
        assert reader.places() == []
        seen = reader.token
        await house.publish("after the reset", scope="news")
        await wait_until(lambda: [scope for scope, _ in reader.places()] == ["news"])
    async with whole(house, seen) as reader:
        await wait_until(lambda: [scope for scope, _ in reader.places()] == ["news"])
    return reset


def rounds_reset() -> type[StreamEvent]:
    return firehose.ResetAll


async def test_a_token_of_another_copy_of_the_database_is_reset(house: House, database_urls: DatabaseUrls) -> None:
    token = await token_of_now(house)
    await house.publish("lost")
    identity = await value_of(house.database, "SELECT syncbeat_feed_identity()")
    for other in (f"{identity}0", f"1{identity}"):  # of another table, of another cluster
        await run_sql(
            database_urls.owner_url,
            f"""CREATE OR REPLACE FUNCTION syncbeat_feed_identity() RETURNS text LANGUAGE sql
                AS $$ SELECT '{other}' $$""",
        )
        reset = await reset_by(house, token)
        assert 0 <= reset.refetch_delay_s < 60
        token = await token_of_now(house)


async def test_a_feed_is_known_by_cluster_database_and_table(house: House, database_urls: DatabaseUrls) -> None:
    identity = "SELECT syncbeat_feed_identity()"
    cluster, database, table = (await value_of(house.database, identity)).split(".")
    assert int(cluster) > 2**32
    assert int(database) == await value_of(
        house.database, "SELECT oid::bigint FROM pg_database WHERE datname = current_database()"
    )
    assert int(table) == await value_of(house.database, "SELECT 'changes'::regclass::oid::bigint")
    await run_sql(database_urls.admin_url, "REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
    assert await value_of(house.database, identity) == f"0.{database}.{table}", "where a provider does not tell"


async def test_a_token_of_a_future_that_a_restore_undid_is_reset(house: House) -> None:
    token = await token_of_now(house)
    place = firehose.decode(APP, token)
    assert place.since is not None
    ahead = place.since.xmax + 1_000
    await reset_by(house, firehose.encode(APP, place._replace(since=firehose.rounds.Snapshot(ahead, ahead))))


async def test_a_reset_carries_a_token_that_brings_all_there_is(house: House, database_urls: DatabaseUrls) -> None:
    await house.publish("a", "b")
    await house.publish("a")
    await house.publish("gone", deleted=True)
    await house.publish("x", scope="other")
    await run_sql(
        database_urls.admin_url,
        "UPDATE changes SET xid = '0' WHERE key = 'a'",  # of before the migration
        "UPDATE changes SET xid = '4611686018427387904' WHERE key = 'b'",  # restored from a cluster far ahead
    )
    place = firehose.decode(APP, await token_of_now(house))
    reset = await reset_by(house, firehose.encode(APP, place._replace(feed="another")))
    async with whole(house, reset.token) as reader:
        await came(reader, ("couple", 2), ("couple", 3), ("couple", 4), ("news", 1), ("other", 1))
        await house.publish("c")
        await wait_until(lambda: reader.places()[5:] == [("couple", 5)])


async def test_restored_rows_of_a_cluster_far_ahead_come_when_they_change_and_never_again_and_again(
    house: House, database_urls: DatabaseUrls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(firehose, "_LOOK_S", 0.01)
    await house.publish("a", "b")
    await run_sql(database_urls.admin_url, "UPDATE changes SET xid = '4611686018427387904'")
    async with whole(house) as reader:
        await house.publish("b")
        await house.publish("c")
        await came(reader, ("couple", 3), ("couple", 4))
        token = reader.token
    async with whole(house, token) as reader:
        await house.publish("d")
        await wait_until(lambda: ("couple", 5) in reader.places())
        assert ("couple", 1) not in reader.places()


DAY_S = 86_400.0


async def prune(house: House) -> int:
    from syncbeat_server.sync.pruning import TombstonePruning

    return await TombstonePruning(house.database, 30.0, house.clock).prune()


async def test_a_token_that_lacks_a_deletion_whose_tombstone_was_removed_is_reset(house: House) -> None:
    await house.publish("a", "b")
    token = await token_of_now(house)
    await house.publish("a", deleted=True)
    seen = await token_of_now(house)
    await house.clock.advance(32 * DAY_S)
    async with whole(house, token) as reader:
        await came(reader, ("couple", 3))
    assert await prune(house) == 1
    await reset_by(house, token)
    async with whole(house, seen) as reader:
        await wait_until(lambda: reader.places() == [("news", 1)])


async def test_a_pruned_tombstone_of_another_cluster_resets_nobody(house: House, database_urls: DatabaseUrls) -> None:
    await house.publish("a", "b", deleted=True)
    await run_sql(
        database_urls.admin_url,
        "UPDATE changes SET xid = '4611686018427387904' WHERE key = 'a'",
        "INSERT INTO pruned_feeds VALUES ('default', '4611686018427387904')",
    )
    token = await token_of_now(house)
    await house.clock.advance(32 * DAY_S)
    assert await prune(house) == 2
    async with whole(house, token) as reader:
        await house.publish("c")
        await came(reader, ("couple", 3))


@pytest.mark.parametrize("token", ["x", "AAAA", "no token at all", "=", "é", "A" * 8_192])
async def test_a_malformed_token_is_refused_by_its_field(house: House, token: str) -> None:
    async with whole(house, token) as reader:
        assert isinstance(reader.error, InvalidRequest)
        assert [fault.path for fault in reader.error.violations] == ["token"]
    assert len(house.hub) == 0


# --------------------------------------------------------------------------------------------------------------- cursors


def cursors_of(reader: Reader) -> set[tuple[str, int | None]]:
    (*_, last) = [event.cursors for event in reader.events if isinstance(event, Checkpoint)]
    return {(cursor.scope, cursor.sequence) for cursor in last}


async def test_a_firehose_without_a_token_goes_by_cursors_as_ever(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(firehose, "_CURSORS_EVERY_S", 0.0)
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
    place = firehose.decode(APP, token)
    # A round that begins before what the cursors are answered with.
    house.firehose._now = partial(_just, place)  # type: ignore[method-assign]
    async with whole(house, "", Cursor("couple", "", 1)) as reader:
        await house.publish("d")
        await came(reader, ("couple", 2), ("couple", 3), ("couple", 4))
        await wait_until(lambda: isinstance(reader.events[-1], Checkpoint))
        assert firehose.decode(APP, reader.token).since != place.since
    assert head.sequence == 3


async def _just(place: firehose.Place, app_id: str) -> firehose.Place:
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
    async with whole(house, None) as reader:
        await run_sql(
            database_urls.owner_url,
            "CREATE OR REPLACE FUNCTION syncbeat_feed_identity() RETURNS text LANGUAGE sql AS $$ SELECT 'other' $$",
        )
        house.hub.look_everywhere()
        await wait_until(lambda: reader.ended)
        assert isinstance(reader.events[-1], Drain)


async def test_a_firehose_keeps_a_bounded_number_of_cursors(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(firehose, "_CURSORS_EVERY_S", 0.0)
    monkeypatch.setattr(firehose, "_MAX_CURSORS", 3)
    async with whole(house, None) as reader:
        for number in range(5):
            await house.publish("k", scope=f"s{number}")
        await wait_until(lambda: cursors_of(reader) == {("s2", 1), ("s3", 1), ("s4", 1)})
        assert len(reader.places()) == 5


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
    assert len(await end_of(house)) == 1
