"""Tokens of a whole app's stream: pages to break off at, and places that cannot be gone on from."""

from __future__ import annotations

import pytest

from syncbeat_server.errors import InvalidRequest
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.sync.content.firehose_token import Snapshot, decode, encode
from syncbeat_server.sync.feed.epoch_renewal import renew_epochs
from syncbeat_server.sync.feed.tombstone_pruning import TombstonePruner
from syncbeat_server.sync.model import Activity, ChangesSent, Checkpoint, Cursor, ResetAll
from syncbeat_server.sync.store import firehose_pages
from syncbeat_server.sync.streams.firehose_stream import FirehoseRequest
from syncbeat_server.sync.streams.stream_context import StreamRule
from tests.support.build import APP, SyncFeature
from tests.support.databases import DatabaseUrls, run_sql
from tests.support.fake_clock import FakeClock, wait_until
from tests.support.firehose_reads import add_rows, first_page, pages_from, reset_by, three_pages
from tests.support.seed import couple, rows_of, value_of
from tests.support.sync_streams import came, let_in, publish_to, token_of_now, whole

pytestmark = [pytest.mark.store, pytest.mark.usefixtures("database", "clock")]


@pytest.fixture
async def sync(database: Database, clock: FakeClock) -> SyncFeature:
    await couple(database)
    return SyncFeature(database, clock)


# ---------------------------------------------------------------------------------------------------------------- pages


async def test_firehose_catch_up_can_stop_after_each_page(sync: SyncFeature) -> None:
    token = await token_of_now(sync)
    names = [f"scope-{number:04}" for number in range(2 * firehose_pages.MAX_CHANGES + 10)]
    await publish_to(sync, names)
    whole_pages = []
    for _ in range(3):
        page, token = await first_page(sync, token)
        whole_pages.append(len(page))
        assert [scope for scope, _ in page] == names[: len(page)]
        names = names[len(page) :]
        await sync.publish("meanwhile", scope="scope-0000")  # is of the round after
    assert whole_pages == [firehose_pages.MAX_CHANGES, firehose_pages.MAX_CHANGES, 10]
    page, token = await first_page(sync, token)
    assert page == [("scope-0000", 4)], "what was published thrice has one newest change"
    assert len(token) < 300


async def test_firehose_page_ends_at_a_mebibyte(sync: SyncFeature) -> None:
    token = await token_of_now(sync)
    large = '"' + "x" * 250_000 + '"'
    await publish_to(sync, [f"s{number}" for number in range(10)], patch=large)
    held_at_once = [len(changes) for changes, _ in [page async for page in three_pages(sync, token)]]
    assert held_at_once == [4, 4, 2]
    token = await token_of_now(sync)
    for number in range(2):
        patch = '{"%d": %s, "%dx": %s}' % (number, large, number, large)  # noqa: UP031  # braces of its own
        for scope in ("huge", "huger"):
            await publish_to(sync, [scope], patch=patch)
    sizes = [len(changes) for changes, _ in [page async for page in three_pages(sync, token)]]
    assert sizes[:2] == [1, 1]


async def test_firehose_catch_up_of_many_changes_is_complete_and_interruptible(
    sync: SyncFeature, database_urls: DatabaseUrls
) -> None:
    await add_rows(database_urls, 30_000)
    token = await token_of_now(sync)
    await run_sql(
        database_urls.admin_url,
        "UPDATE changes SET sequence = sequence + 5 WHERE scope <> 'bulk-000007'",
        "UPDATE scopes SET head = 10 WHERE scope LIKE 'bulk-%'",
    )
    expected = [(f"bulk-{scope:06}", sequence) for scope in range(1, 6_001) if scope != 7 for sequence in range(6, 11)]
    assert len(expected) > firehose_pages.MAX_ENTRIES
    found: list[tuple[str, int]] = []
    async for changes, after in pages_from(sync, token):
        found += changes
        token = after
        if len(found) > 3_000:
            break
    await sync.publish("meanwhile", scope="bulk-000001")
    async for changes, _ in pages_from(sync, token):
        found += changes
        if len(found) > len(expected):
            break
    assert found == [*expected, ("bulk-000001", 11)]


async def test_firehose_page_query_uses_its_index(sync: SyncFeature, database_urls: DatabaseUrls) -> None:
    await add_rows(database_urls, 30_000)
    await run_sql(database_urls.admin_url, "ANALYZE changes, scopes")
    now = await value_of(sync.database, "SELECT pg_current_snapshot()::text")
    plan = [
        line
        for (line,) in await rows_of(sync.database, f"EXPLAIN {firehose_pages.BY_TRANSACTION}", APP, now, None, "", 0)
    ]
    assert sum("changes_by_xid" in line for line in plan) >= 2, plan
    assert not any("Seq Scan on changes" in line for line in plan), plan
    assert any("Tid Scan on changes" in line for line in plan), plan
    plan = [
        line for (line,) in await rows_of(sync.database, f"EXPLAIN {firehose_pages.IN_ORDER}", APP, now, None, "b", 0)
    ]
    assert not any("Seq Scan on changes" in line for line in plan), plan
    assert any("changes_by_sequence" in line for line in plan), plan


# --------------------------------------------------------------------------------------------------------------- resets


async def test_firehose_token_of_another_database_copy_is_reset(sync: SyncFeature, database_urls: DatabaseUrls) -> None:
    token = await token_of_now(sync)
    await sync.publish("lost")
    identity = await value_of(sync.database, "SELECT syncbeat_feed_identity()")
    for other in (f"{identity}0", f"1{identity}"):  # of another table, of another cluster
        await run_sql(
            database_urls.owner_url,
            f"""CREATE OR REPLACE FUNCTION syncbeat_feed_identity() RETURNS text LANGUAGE sql
                AS $$ SELECT '{other}' $$""",
        )
        reset = await reset_by(sync, token)
        assert 0 <= reset.refetch_delay_s < 60
        token = await token_of_now(sync)


async def test_firehose_feed_identity_is_cluster_database_and_table(
    sync: SyncFeature, database_urls: DatabaseUrls
) -> None:
    identity = "SELECT syncbeat_feed_identity()"
    cluster, database, table = (await value_of(sync.database, identity)).split(".")
    assert int(cluster) > 2**32
    assert int(database) == await value_of(
        sync.database, "SELECT oid::bigint FROM pg_database WHERE datname = current_database()"
    )
    assert int(table) == await value_of(sync.database, "SELECT 'changes'::regclass::oid::bigint")
    await run_sql(database_urls.admin_url, "REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
    assert await value_of(sync.database, identity) == f"0.{database}.{table}", "where a provider does not tell"


async def test_firehose_token_ahead_of_a_restore_is_reset(sync: SyncFeature) -> None:
    token = await token_of_now(sync)
    place = decode(APP, token)
    assert place.since is not None
    ahead = place.since.xmax + 1_000
    await reset_by(sync, encode(APP, place._replace(since=Snapshot(ahead, ahead))))


async def test_firehose_reset_carries_a_token_for_everything(sync: SyncFeature, database_urls: DatabaseUrls) -> None:
    await sync.publish("a", "b")
    await sync.publish("a")
    await sync.publish("gone", deleted=True)
    await sync.publish("x", scope="other")
    await run_sql(
        database_urls.admin_url,
        "UPDATE changes SET xid = '0' WHERE key = 'a'",  # of before the migration
        "UPDATE changes SET xid = '4611686018427387904' WHERE key = 'b'",  # restored from a cluster far ahead
    )
    place = decode(APP, await token_of_now(sync))
    reset = await reset_by(sync, encode(APP, place._replace(feed="another")))
    async with whole(sync, reset.token) as reader:
        await came(reader, ("couple", 2), ("couple", 3), ("couple", 4), ("news", 1), ("other", 1))
        await sync.publish("c")
        await wait_until(lambda: reader.places()[5:] == [("couple", 5)])


async def test_firehose_restored_rows_of_a_cluster_ahead_come_once(
    sync: SyncFeature, database_urls: DatabaseUrls
) -> None:
    sync = sync.under(streams=StreamRule(look_every_s=0.01))
    await sync.publish("a", "b")
    await run_sql(database_urls.admin_url, "UPDATE changes SET xid = '4611686018427387904'")
    async with whole(sync) as reader:
        await sync.publish("b")
        await sync.publish("c")
        await came(reader, ("couple", 3), ("couple", 4))
        token = reader.token
    async with whole(sync, token) as reader:
        await sync.publish("d")
        await wait_until(lambda: ("couple", 5) in reader.places())
        assert ("couple", 1) not in reader.places()


DAY_S = 86_400.0


async def prune(sync: SyncFeature) -> int:
    return await TombstonePruner(sync.database, 30.0, sync.clock).prune()


async def test_firehose_token_before_a_pruned_tombstone_is_reset(sync: SyncFeature) -> None:
    await sync.publish("a", "b")
    token = await token_of_now(sync)
    await sync.publish("a", deleted=True)
    seen = await token_of_now(sync)
    await sync.clock.advance(32 * DAY_S)
    async with whole(sync, token) as reader:
        await came(reader, ("couple", 3))
    assert await prune(sync) == 1
    await reset_by(sync, token)
    async with whole(sync, seen) as reader:
        await wait_until(lambda: reader.places() == [("news", 1)])


async def test_firehose_pruned_tombstone_of_another_cluster_resets_nobody(
    sync: SyncFeature, database_urls: DatabaseUrls
) -> None:
    await sync.publish("a", "b", deleted=True)
    await run_sql(
        database_urls.admin_url,
        "UPDATE changes SET xid = '4611686018427387904' WHERE key = 'a'",
        "INSERT INTO pruned_feeds VALUES ('default', '4611686018427387904', 'another')",
    )
    token = await token_of_now(sync)
    await sync.clock.advance(32 * DAY_S)
    assert await prune(sync) == 2
    async with whole(sync, token) as reader:
        await sync.publish("c")
        await came(reader, ("couple", 3))


async def add_mark(urls: DatabaseUrls, ahead: int) -> None:
    """Of a cluster that was further by some transactions, as a dump brings it."""
    await run_sql(
        urls.admin_url,
        f"""INSERT INTO pruned_feeds
            VALUES ('default', (pg_current_xact_id()::text::bigint + {ahead})::text::xid8, 'another')""",
    )


async def test_firehose_restored_prune_mark_resets_nobody(sync: SyncFeature, database_urls: DatabaseUrls) -> None:
    await add_mark(database_urls, 10)
    async with whole(sync) as reader:
        for number in range(30):
            await sync.publish(f"k{number}")
        await came(reader, *(("couple", sequence) for sequence in range(1, 31)))
        assert reader.count(ResetAll) == 0


@pytest.mark.parametrize("ahead", [-5, 1_000])
async def test_firehose_restored_prune_mark_gives_way_to_a_local_one(
    sync: SyncFeature, database_urls: DatabaseUrls, ahead: int
) -> None:
    await add_mark(database_urls, ahead)
    await sync.publish("a", "b")
    token = await token_of_now(sync)
    await sync.publish("a", deleted=True)
    await sync.clock.advance(32 * DAY_S)
    assert await prune(sync) == 1
    await reset_by(sync, token)


async def test_firehose_restored_prune_mark_raised_by_an_earlier_server(
    sync: SyncFeature, database_urls: DatabaseUrls
) -> None:
    await add_mark(database_urls, 1_000)
    await sync.publish("a", "b")
    token = await token_of_now(sync)
    await sync.publish("a", deleted=True)
    async with sync.database.transaction() as conn:  # as versions do that do not know of the column
        await conn.execute("DELETE FROM changes WHERE deleted")
        await conn.execute(
            """INSERT INTO pruned_feeds AS p (app_id, xid) VALUES ('default', '3')
               ON CONFLICT (app_id) DO UPDATE SET xid = greatest(p.xid, excluded.xid)"""
        )
    await reset_by(sync, token)


async def test_new_epochs_delete_prune_marks(sync: SyncFeature, database_urls: DatabaseUrls) -> None:
    await add_mark(database_urls, 1_000)
    await renew_epochs(sync.database, sync.clock, None)
    assert await rows_of(sync.database, "SELECT app_id FROM pruned_feeds") == []


@pytest.mark.parametrize("token", ["x", "AAAA", "no token at all", "=", "é", "A" * 8_192])
async def test_firehose_token_malformed_is_refused_by_its_field(sync: SyncFeature, token: str) -> None:
    async with whole(sync, token) as reader:
        assert isinstance(reader.error, InvalidRequest)
        assert [fault.path for fault in reader.error.violations] == ["token"]
    assert len(sync.hub) == 0


AHEAD = [
    Snapshot(2**62 + 1, 2**63 - 1),
    Snapshot(5, 2**63 - 1),
    Snapshot(2**32 + 3, 2**40 + 3, (2**32 + 3, 2**33, 2**40)),
    Snapshot(2**32 - 1, 2**32 + 1, (2**32 - 1, 2**32)),
]


@pytest.mark.parametrize("snapshot", AHEAD, ids=lambda snapshot: snapshot.text)
async def test_firehose_token_of_maximal_numbers_is_reset(sync: SyncFeature, snapshot: Snapshot) -> None:
    await sync.publish("a")
    place = decode(APP, await token_of_now(sync))
    for forged in (
        place._replace(since=snapshot, after=("\x7f", 2**63 - 1), pruned=2**63 - 1),
        place._replace(since=snapshot, until=snapshot),
        place._replace(until=snapshot, after=("\x7f", 2**63 - 1)),
        place._replace(since=None, until=snapshot),
    ):
        async with whole(sync, encode(APP, forged)) as reader:
            await came(reader, ("couple", 1))
            assert reader.count(ResetAll) == 1


async def test_firehose_reset_by_pruning_comes_once_despite_an_open_transaction(sync: SyncFeature) -> None:
    await sync.publish("a", "b")
    token = await token_of_now(sync)
    async with sync.database.transaction() as held:
        await held.execute("SELECT pg_current_xact_id()")  # no snapshot is beyond this number as long as it is open
        await sync.publish("a", deleted=True)
        await sync.clock.advance(32 * DAY_S)
        assert await prune(sync) == 1
        await reset_by(sync, token)
        async with whole(sync) as reader:
            await sync.publish("c")
            await came(reader, ("couple", 4))
            assert reader.count(ResetAll) == 0
            await wait_until(lambda: isinstance(reader.events[-1], Checkpoint))
            token = reader.token
        async with whole(sync, token) as reader:
            await sync.publish("d")
            await came(reader, ("couple", 5))
            assert reader.count(ResetAll) == 0


async def test_firehose_reset_forgets_its_cursors(sync: SyncFeature, database_urls: DatabaseUrls) -> None:
    await sync.publish("a", "b", "c")
    async with whole(sync, "", Cursor("couple", "", 0)) as reader:
        await came(reader, ("couple", 1), ("couple", 2), ("couple", 3))
        await run_sql(
            database_urls.admin_url,
            "CREATE OR REPLACE FUNCTION syncbeat_feed_identity() RETURNS text LANGUAGE sql AS $$ SELECT 'restored' $$",
            "UPDATE scopes SET head = 1",
            "DELETE FROM changes WHERE sequence > 1",
        )
        sync.hub.invalidate_all()
        await wait_until(lambda: reader.count(ResetAll))
        await wait_until(lambda: reader.places()[3:] == [("couple", 1)])
        await sync.publish("b")
        await wait_until(lambda: reader.places()[4:] == [("couple", 2)])


async def test_firehose_reset_in_progress_is_not_reset_by_irrelevant_tombstones(
    sync: SyncFeature, database_urls: DatabaseUrls
) -> None:
    token = await token_of_now(sync)
    async with sync.database.transaction() as held:
        await held.execute("SELECT pg_current_xact_id()")  # no snapshot is beyond this number as long as it is open
        await sync.publish("gone", deleted=True)
        await sync.clock.advance(32 * DAY_S)
        assert await prune(sync) == 1
        await add_rows(database_urls, 2_000)
        async with whole(sync, token) as reader:
            await wait_until(lambda: len(reader.places()) >= 2_000)
            assert reader.count(ResetAll) == 1
            await sync.publish("last")
            await wait_until(lambda: reader.places()[2_000:] == [("couple", 2)])
            assert reader.count(ResetAll) == 1


@pytest.mark.parametrize("stops_after", [0, 1, 2])
async def test_firehose_reset_resumes_wherever_its_reader_stops(
    sync: SyncFeature, database_urls: DatabaseUrls, stops_after: int
) -> None:
    await add_rows(database_urls, 2_000)
    place = decode(APP, await token_of_now(sync))
    kept, seen = encode(APP, place._replace(feed="another")), list[tuple[str, int]]()
    events = sync.firehose.watch(FirehoseRequest(APP, kept, (), Activity(), 30.0, None, let_in))
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
    async with whole(sync, kept) as reader:
        await wait_until(lambda: len(reader.places()) >= 2_000 - len(seen))
        there = await rows_of(sync.database, "SELECT scope, sequence FROM changes ORDER BY scope, sequence")
        assert seen + reader.places() == there
        assert reader.count(ResetAll) == 0
