"""After a restore nobody goes on from what it took back: heads that fell and epochs that changed."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial

import asyncpg
import pytest

from syncbeat_server.clock import SystemClock
from syncbeat_server.errors import Overloaded
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.storage.postgres.restore_detection import lineage
from syncbeat_server.sync.feed.epoch_renewal import RenewalRule, extent, renew_epochs
from syncbeat_server.sync.model import Checkpoint, Cursor, Reset, ResetAll
from syncbeat_server.sync.streams.restore_sweep import RestoreSweep
from tests.push.test_delivery_queue import claimed_one
from tests.support.build import PHONE, SyncFeature
from tests.support.databases import DatabaseUrls, run_sql
from tests.support.fake_clock import FakeClock, wait_until
from tests.support.seed import accept, add_device, add_members, couple, rows_of, value_of, wake
from tests.support.sync_streams import came, stream, tell, whole
from tests.support.view_reads import move_head

pytestmark = pytest.mark.store

FEED_GENERATION = "SELECT feed_generation FROM deployment"
FALL = "UPDATE scopes SET head = 10 WHERE scope = 'couple'"
RENEW = "UPDATE scopes SET epoch = 'another' WHERE scope = 'couple'"


@pytest.fixture
async def sync(database: Database, clock: FakeClock) -> SyncFeature:
    await couple(database)
    return SyncFeature(database, clock)


async def fall_back(sync: SyncFeature) -> None:
    """As a restore does: changes above 10 have never been."""
    async with sync.database.connection() as conn:
        await conn.execute("DELETE FROM changes WHERE sequence > 10")
        await conn.execute(FALL)


async def test_restore_hint_flags_a_cursor_ahead_of_the_head(sync: SyncFeature) -> None:
    head = await sync.publish(*(f"k{number}" for number in range(20)))
    assert not (await sync.hint(head)).changed
    await fall_back(sync)
    hint = await sync.hint(head)
    assert hint.changed
    assert hint.heads[0].sequence == 10
    assert (await sync.hint(Cursor("couple", "", 20))).changed, "without an epoch too"
    assert not (await sync.hint(head._replace(sequence=10))).changed


async def test_restore_hint_flags_a_cursor_of_another_epoch(sync: SyncFeature) -> None:
    head = await sync.publish("a", "b")
    for sequence in (0, 1, 2, 3):
        assert (await sync.hint(head._replace(epoch="another", sequence=sequence))).changed


async def test_restore_invalidates_a_cached_view(database: Database, clock: FakeClock) -> None:
    await couple(database)
    kept = SyncFeature(database, clock, cached_views=100)
    for _ in range(20):
        await move_head(kept)
    epoch = await value_of(database, "SELECT epoch FROM scopes WHERE scope = 'couple'")
    assert not (await kept.hint(Cursor("couple", epoch, 20))).changed
    async with database.connection() as conn:
        await conn.execute(RENEW)
    assert not (await kept.hint(Cursor("couple", "another", 20))).changed, "who knows another epoch has the view read"
    await kept.view_sweep.sweep()
    assert (await kept.hint(Cursor("couple", epoch, 20))).changed, "and the sweep has found it"


async def test_restore_replaces_a_seen_cursor_of_before(sync: SyncFeature) -> None:
    head = await sync.publish(*(f"k{number}" for number in range(20)))
    await sync.hint(head)
    await sync.cursors.flush()
    await fall_back(sync)
    await sync.publish("new")
    assert (await sync.hint(head._replace(sequence=11))).changed is False
    await sync.cursors.flush()
    assert await value_of(sync.database, "SELECT sequence FROM device_cursors") == 11


@pytest.mark.parametrize("change", [FALL, RENEW])
async def test_restore_resets_a_stream_by_the_next_sweep(sync: SyncFeature, change: str) -> None:
    head = await sync.publish(*(f"k{number}" for number in range(20)))
    async with stream(sync, head) as reader:
        await sync.head_sweep.sweep(5.0)
        async with sync.database.connection() as conn:
            await conn.execute(change)
        await sync.head_sweep.sweep(5.0)
        await wait_until(lambda: reader.count(Reset))
        reset = next(event for event in reader.events if isinstance(event, Reset))
        assert reset.head == Cursor("couple", *(("another", 20) if change == RENEW else (head.epoch, 10)))
        await tell(sync)
        await wait_until(lambda: reader.events[-1] is not reset)
        last = [event for event in reader.events if isinstance(event, Checkpoint)][-1]
        assert last.cursors == (reset.head,)


async def test_new_epochs_reset_a_firehose_which_continues(sync: SyncFeature, clock: FakeClock) -> None:
    async with whole(sync) as reader:
        await sync.publish("a")
        await came(reader, ("couple", 1))
        old = reader.token
        await renew_epochs(sync.database, clock, None)
        sync.hub.invalidate_all(restored=True)
        await came(reader, ("couple", 1), ("couple", 1))
        assert reader.count(ResetAll) == 1
        await sync.publish("b")
        await came(reader, ("couple", 1), ("couple", 1), ("couple", 2))
    async with whole(sync, old) as reader:
        await wait_until(lambda: reader.count(ResetAll), what="its token is of before")
        await came(reader, ("couple", 1), ("couple", 2))


async def test_restore_detection_by_lineage(database: Database, database_urls: DatabaseUrls, clock: FakeClock) -> None:
    restored: list[None] = []
    sweep = RestoreSweep(database, clock, lambda: restored.append(None))
    for _ in range(3):
        await sweep.sweep()
    assert restored == []
    await renew_epochs(database, clock, None)
    await sweep.sweep()
    assert len(restored) == 1
    await run_sql(database_urls.admin_url, "VACUUM FULL scopes")  # its file is another one, as after TRUNCATE
    await sweep.sweep()
    await sweep.sweep()
    assert len(restored) == 2


async def test_restore_to_an_earlier_transaction_clears_the_view_cache(database: Database, clock: FakeClock) -> None:
    await couple(database)
    sync = SyncFeature(database, clock, cached_views=10)
    views, sweep = sync.views, sync.view_sweep
    await sweep.sweep()
    await sync.view_reader.read(PHONE)
    await sweep.sweep()
    assert views.get(PHONE) is not None
    sweep._floor = str(int(sweep._floor or 0) + 1_000_000)  # as of a cluster that had come further
    await sweep.sweep()
    assert views.get(PHONE) is None


async def epochs_of(database: Database) -> dict[str, str]:
    async with database.connection() as conn:
        return {row["scope"]: row["epoch"] for row in await conn.fetch("SELECT scope, epoch FROM scopes")}


async def test_new_epochs_are_begun_in_pages_and_differ_per_run(database: Database, clock: FakeClock) -> None:
    for number in range(7):
        await add_members(database, f"scope {number}", "ann")
    before, told = await epochs_of(database), list[int]()
    assert await value_of(database, FEED_GENERATION) == 0
    done, generation = await renew_epochs(database, clock, None, told.append, RenewalRule(page=3))
    assert (done, told) == (7, [3, 6, 7])
    after = await epochs_of(database)
    assert all(before[scope] != after[scope] for scope in before)
    assert len(set(after.values())) == 7
    _, next_generation = await renew_epochs(database, clock, None)
    assert next_generation > generation > 1_000_000_000_000, "no number that was counted before comes again"
    assert not set((await epochs_of(database)).values()) & set(after.values())
    assert await value_of(database, FEED_GENERATION) == next_generation


async def test_new_epochs_treat_changes_of_another_cluster_as_old(database: Database, clock: FakeClock) -> None:
    sync = SyncFeature(database, clock)
    await sync.publish("restored", "ours", scope="couple")
    async with database.connection() as conn:
        await conn.execute("UPDATE changes SET xid = '9000000000' WHERE key = 'restored'")
    await renew_epochs(database, clock, None)
    foreign = "SELECT key FROM changes WHERE xid = '0'"
    assert await rows_of(database, foreign) == [("restored",)]


async def test_new_epochs_of_one_app_spare_the_others(database: Database, clock: FakeClock) -> None:
    await add_members(database, "ours", "ann")
    async with database.connection() as conn:
        await conn.execute("INSERT INTO scopes (app_id, scope, created_at) VALUES ('other', 'theirs', syncbeat_now())")
    before = await epochs_of(database)
    assert (await extent(database, "other"))[1:] == (1, 1)
    assert (await extent(database, None))[1:] == (2, 2)
    assert (await renew_epochs(database, clock, "other"))[0] == 1
    after = await epochs_of(database)
    assert (before["ours"] == after["ours"], before["theirs"] == after["theirs"]) == (True, False)


async def test_new_epochs_wait_for_a_locked_scope_holding_no_other(
    database: Database, database_urls: DatabaseUrls, clock: FakeClock
) -> None:
    rule = RenewalRule(lock_ms=50)
    await add_members(database, "a", "ann")
    await add_members(database, "b", "ann")
    holder = await asyncpg.connect(database_urls.owner_url.replace("syncbeat_owner@", "syncbeat_app@"))
    try:
        locked = holder.transaction()
        await locked.start()
        await holder.execute("SELECT FROM scopes WHERE scope = 'b' FOR UPDATE")
        running = asyncio.ensure_future(renew_epochs(database, clock, None, rule=rule))
        await wait_until(lambda: clock.sleepers)
        async with database.transaction() as conn:  # between two tries nothing is held
            await conn.execute("SET LOCAL lock_timeout = 5000")
            assert await conn.fetchval("SELECT true FROM scopes WHERE scope = 'a' FOR UPDATE NOWAIT")
        await locked.rollback()
        while not running.done():
            await clock.advance(1.0)
        assert (await running)[0] == 2
        await holder.execute("BEGIN; SELECT FROM scopes WHERE scope = 'b' FOR UPDATE")
        with pytest.raises(Overloaded):
            await renew_epochs(database, SystemClock(), None, rule=replace(rule, tries=1))
    finally:
        await holder.close()


async def test_new_epoch_redirects_an_old_wake_up_to_the_head(database: Database, clock: FakeClock) -> None:
    await add_device(database, "ann")
    await add_members(database, "couple", "ann")
    await accept(database, wake(8))
    async with database.connection() as conn:
        await conn.execute(
            """INSERT INTO device_cursors (app_id, user_id, device_id, scope, epoch, sequence, seen_at)
               VALUES ('default', 'ann', 'phone', 'couple', 'epoch-1', 9, syncbeat_now())"""
        )
        await conn.execute(FALL)
    await renew_epochs(database, clock, None)
    delivery = await claimed_one(database)
    epoch = (await epochs_of(database))["couple"]
    assert (delivery.epoch, delivery.sequence, delivery.already_seen) == (epoch, 10, False)
    assert await value_of(database, "SELECT epoch FROM deliveries") == epoch, "an answer is one to the new epoch"


@pytest.mark.parametrize(("shown", "seen"), [(10, False), (11, True), (12, True), (13, False)])
async def test_wake_up_is_not_answered_by_a_cursor_ahead_of_the_head(
    database: Database, clock: FakeClock, shown: int, seen: bool
) -> None:
    await add_device(database, "ann")
    await add_members(database, "couple", "ann")
    await accept(database, wake(11))
    async with database.connection() as conn:
        await conn.execute(
            """INSERT INTO device_cursors (app_id, user_id, device_id, scope, epoch, sequence, seen_at)
               VALUES ('default', 'ann', 'phone', 'couple', 'epoch-1', $1, syncbeat_now())""",
            shown,
        )
        await conn.execute("UPDATE scopes SET head = 12")
    assert (await claimed_one(database)).already_seen is seen


async def test_lineage_text_is_equal_on_every_connection(database: Database) -> None:
    found = set()
    for _ in range(3):
        async with database.connection() as conn:
            found.add(await lineage(conn))
    assert len(found) == 1
    assert await wait_until(partial(value_of, database, "SELECT count(*) = 1 FROM deployment"))
