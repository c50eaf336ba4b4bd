"""Tokens of a whole app's stream: pages to break off at, and places that cannot be gone on from."""

from __future__ import annotations

import pytest

from syncbeat_server.errors import InvalidRequest
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.sync.content.firehose_token import Snapshot, decode, encode
from syncbeat_server.sync.feed.epoch_renewal import renew_epochs
from syncbeat_server.sync.feed.prune import TombstonePruner
from syncbeat_server.sync.model import Activity, ChangesSent, Checkpoint, Cursor, ResetAll
from syncbeat_server.sync.store import firehose_pages
from syncbeat_server.sync.streams import firehose_stream
from syncbeat_server.sync.streams.firehose_stream import FirehoseRequest
from tests.conftest import DatabaseUrls, run_sql
from tests.fakes import FakeClock, wait_until
from tests.storage.firehose_reads import add_rows, first_page, pages_from, reset_by, three_pages
from tests.storage.house import House, came, let_in, publish_to, token_of_now, whole
from tests.storage.stage import APP, couple, rows_of, value_of

pytestmark = pytest.mark.usefixtures("database", "clock")


@pytest.fixture
async def house(database: Database, clock: FakeClock) -> House:
    await couple(database)
    return House(database, clock)


# ---------------------------------------------------------------------------------------------------------------- pages


async def test_a_long_catch_up_can_be_broken_off_after_each_page(house: House) -> None:
    token = await token_of_now(house)
    names = [f"scope-{number:04}" for number in range(2 * firehose_pages.MAX_CHANGES + 10)]
    await publish_to(house, names)
    whole_pages = []
    for _ in range(3):
        page, token = await first_page(house, token)
        whole_pages.append(len(page))
        assert [scope for scope, _ in page] == names[: len(page)]
        names = names[len(page) :]
        await house.publish("meanwhile", scope="scope-0000")  # is of the round after
    assert whole_pages == [firehose_pages.MAX_CHANGES, firehose_pages.MAX_CHANGES, 10]
    page, token = await first_page(house, token)
    assert page == [("scope-0000", 4)], "what was published thrice has one newest change"
    assert len(token) < 300


async def test_a_page_ends_at_a_mebibyte_and_holds_one_value_at_least(house: House) -> None:
    token = await token_of_now(house)
    large = '"' + "x" * 250_000 + '"'
    await publish_to(house, [f"s{number}" for number in range(10)], patch=large)
    held_at_once = [len(changes) for changes, _ in [page async for page in three_pages(house, token)]]
    assert held_at_once == [4, 4, 2]
    token = await token_of_now(house)
    for number in range(2):
        patch = '{"%d": %s, "%dx": %s}' % (number, large, number, large)  # noqa: UP031  # braces of its own
        for scope in ("huge", "huger"):
            await publish_to(house, [scope], patch=patch)
    sizes = [len(changes) for changes, _ in [page async for page in three_pages(house, token)]]
    assert sizes[:2] == [1, 1]


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
    assert len(expected) > firehose_pages.MAX_ENTRIES
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
        line
        for (line,) in await rows_of(house.database, f"EXPLAIN {firehose_pages.BY_TRANSACTION}", APP, now, None, "", 0)
    ]
    assert sum("changes_by_xid" in line for line in plan) >= 2, plan
    assert not any("Seq Scan on changes" in line for line in plan), plan
    assert any("Tid Scan on changes" in line for line in plan), plan
    plan = [
        line for (line,) in await rows_of(house.database, f"EXPLAIN {firehose_pages.IN_ORDER}", APP, now, None, "b", 0)
    ]
    assert not any("Seq Scan on changes" in line for line in plan), plan
    assert any("changes_by_sequence" in line for line in plan), plan


# --------------------------------------------------------------------------------------------------------------- resets


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
    place = decode(APP, token)
    assert place.since is not None
    ahead = place.since.xmax + 1_000
    await reset_by(house, encode(APP, place._replace(since=Snapshot(ahead, ahead))))


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
    place = decode(APP, await token_of_now(house))
    reset = await reset_by(house, encode(APP, place._replace(feed="another")))
    async with whole(house, reset.token) as reader:
        await came(reader, ("couple", 2), ("couple", 3), ("couple", 4), ("news", 1), ("other", 1))
        await house.publish("c")
        await wait_until(lambda: reader.places()[5:] == [("couple", 5)])


async def test_restored_rows_of_a_cluster_far_ahead_come_when_they_change_and_never_again_and_again(
    house: House, database_urls: DatabaseUrls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(firehose_stream, "_LOOK_EVERY_S", 0.01)
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
    return await TombstonePruner(house.database, 30.0, house.clock).prune()


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
        "INSERT INTO pruned_feeds VALUES ('default', '4611686018427387904', 'another')",
    )
    token = await token_of_now(house)
    await house.clock.advance(32 * DAY_S)
    assert await prune(house) == 2
    async with whole(house, token) as reader:
        await house.publish("c")
        await came(reader, ("couple", 3))


async def add_mark(urls: DatabaseUrls, ahead: int) -> None:
    """Of a cluster that was further by some transactions, as a dump brings it."""
    await run_sql(
        urls.admin_url,
        f"""INSERT INTO pruned_feeds
            VALUES ('default', (pg_current_xact_id()::text::bigint + {ahead})::text::xid8, 'another')""",
    )


async def test_a_mark_of_a_pruned_tombstone_that_a_dump_brought_resets_nobody_when_its_number_comes_up(
    house: House, database_urls: DatabaseUrls
) -> None:
    await add_mark(database_urls, 10)
    async with whole(house) as reader:
        for number in range(30):
            await house.publish(f"k{number}")
        await came(reader, *(("couple", sequence) for sequence in range(1, 31)))
        assert reader.count(ResetAll) == 0


@pytest.mark.parametrize("ahead", [-5, 1_000])
async def test_a_mark_that_a_dump_brought_gives_way_to_one_of_this_cluster(
    house: House, database_urls: DatabaseUrls, ahead: int
) -> None:
    await add_mark(database_urls, ahead)
    await house.publish("a", "b")
    token = await token_of_now(house)
    await house.publish("a", deleted=True)
    await house.clock.advance(32 * DAY_S)
    assert await prune(house) == 1
    await reset_by(house, token)


async def test_a_mark_that_a_dump_brought_is_made_its_own_when_an_earlier_server_raises_it(
    house: House, database_urls: DatabaseUrls
) -> None:
    await add_mark(database_urls, 1_000)
    await house.publish("a", "b")
    token = await token_of_now(house)
    await house.publish("a", deleted=True)
    async with house.database.transaction() as conn:  # as versions do that do not know of the column
        await conn.execute("DELETE FROM changes WHERE deleted")
        await conn.execute(
            """INSERT INTO pruned_feeds AS p (app_id, xid) VALUES ('default', '3')
               ON CONFLICT (app_id) DO UPDATE SET xid = greatest(p.xid, excluded.xid)"""
        )
    await reset_by(house, token)


async def test_new_epochs_delete_the_marks_of_pruned_tombstones(house: House, database_urls: DatabaseUrls) -> None:
    await add_mark(database_urls, 1_000)
    await renew_epochs(house.database, house.clock, None)
    assert await rows_of(house.database, "SELECT app_id FROM pruned_feeds") == []


@pytest.mark.parametrize("token", ["x", "AAAA", "no token at all", "=", "é", "A" * 8_192])
async def test_a_malformed_token_is_refused_by_its_field(house: House, token: str) -> None:
    async with whole(house, token) as reader:
        assert isinstance(reader.error, InvalidRequest)
        assert [fault.path for fault in reader.error.violations] == ["token"]
    assert len(house.hub) == 0


AHEAD = [
    Snapshot(2**62 + 1, 2**63 - 1),
    Snapshot(5, 2**63 - 1),
    Snapshot(2**32 + 3, 2**40 + 3, (2**32 + 3, 2**33, 2**40)),
    Snapshot(2**32 - 1, 2**32 + 1, (2**32 - 1, 2**32)),
]


@pytest.mark.parametrize("snapshot", AHEAD, ids=lambda snapshot: snapshot.text)
async def test_a_token_of_numbers_as_large_as_they_may_be_is_reset(house: House, snapshot: Snapshot) -> None:
    await house.publish("a")
    place = decode(APP, await token_of_now(house))
    for forged in (
        place._replace(since=snapshot, after=("\x7f", 2**63 - 1), pruned=2**63 - 1),
        place._replace(since=snapshot, until=snapshot),
        place._replace(until=snapshot, after=("\x7f", 2**63 - 1)),
        place._replace(since=None, until=snapshot),
    ):
        async with whole(house, encode(APP, forged)) as reader:
            await came(reader, ("couple", 1))
            assert reader.count(ResetAll) == 1


async def test_a_reset_by_pruning_comes_once_also_while_a_transaction_stays_open(house: House) -> None:
    await house.publish("a", "b")
    token = await token_of_now(house)
    async with house.database.transaction() as held:
        await held.execute("SELECT pg_current_xact_id()")  # no snapshot is beyond this number as long as it is open
        await house.publish("a", deleted=True)
        await house.clock.advance(32 * DAY_S)
        assert await prune(house) == 1
        await reset_by(house, token)
        async with whole(house) as reader:
            await house.publish("c")
            await came(reader, ("couple", 4))
            assert reader.count(ResetAll) == 0
            await wait_until(lambda: isinstance(reader.events[-1], Checkpoint))
            token = reader.token
        async with whole(house, token) as reader:
            await house.publish("d")
            await came(reader, ("couple", 5))
            assert reader.count(ResetAll) == 0


async def test_a_reset_forgets_the_cursors_it_began_with(house: House, database_urls: DatabaseUrls) -> None:
    await house.publish("a", "b", "c")
    async with whole(house, "", Cursor("couple", "", 0)) as reader:
        await came(reader, ("couple", 1), ("couple", 2), ("couple", 3))
        await run_sql(
            database_urls.admin_url,
            "CREATE OR REPLACE FUNCTION syncbeat_feed_identity() RETURNS text LANGUAGE sql AS $$ SELECT 'restored' $$",
            "UPDATE scopes SET head = 1",
            "DELETE FROM changes WHERE sequence > 1",
        )
        house.hub.invalidate_all()
        await wait_until(lambda: reader.count(ResetAll))
        await wait_until(lambda: reader.places()[3:] == [("couple", 1)])
        await house.publish("b")
        await wait_until(lambda: reader.places()[4:] == [("couple", 2)])


async def test_a_reset_that_lists_many_pages_is_not_reset_again_by_a_tombstone_that_nobody_lacks(
    house: House, database_urls: DatabaseUrls, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = await token_of_now(house)
    async with house.database.transaction() as held:
        await held.execute("SELECT pg_current_xact_id()")  # no snapshot is beyond this number as long as it is open
        await house.publish("gone", deleted=True)
        await house.clock.advance(32 * DAY_S)
        assert await prune(house) == 1
        await add_rows(database_urls, 2_000)
        async with whole(house, token) as reader:
            await wait_until(lambda: len(reader.places()) >= 2_000)
            assert reader.count(ResetAll) == 1
            await house.publish("last")
            await wait_until(lambda: reader.places()[2_000:] == [("couple", 2)])
            assert reader.count(ResetAll) == 1


@pytest.mark.parametrize("stops_after", [0, 1, 2])
async def test_a_reset_is_gone_on_from_wherever_its_reader_stops(
    house: House, database_urls: DatabaseUrls, stops_after: int
) -> None:
    await add_rows(database_urls, 2_000)
    place = decode(APP, await token_of_now(house))
    kept, seen = encode(APP, place._replace(feed="another")), list[tuple[str, int]]()
    events = house.firehose.watch(FirehoseRequest(APP, kept, (), Activity(), 30.0, None, let_in))
    pending, checkpoints = list[tuple[str, int]](), 0
    async for event in events:
        if isinstance(event, ResetAll):
            checkpoints = 0
        elif isinstance(event, ChangesSent):
            pending += [(change.scope, change.sequence) for change in event.changes]
        elif isinstance(event, Checkpoint):
            kept, seen, pending, checkpoints = event.token, seen + pending, [], checkpoints + 1
            if checkpoints > stops_after:
                break
    await events.aclose()
    assert len(seen) == 500 * stops_after
    async with whole(house, kept) as reader:
        await wait_until(lambda: len(reader.places()) >= 2_000 - len(seen))
        there = await rows_of(house.database, "SELECT scope, sequence FROM changes ORDER BY scope, sequence")
        assert seen + reader.places() == there
        assert reader.count(ResetAll) == 0
