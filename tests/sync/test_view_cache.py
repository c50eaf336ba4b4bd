"""Tests the view cache: read once, bounded, and never older than what was told, or than a sweep."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from syncbeat_server.directory.model import Platform, Registration
from syncbeat_server.errors import AccessDenied, DependencyDown
from syncbeat_server.storage.postgres.database import Database, RowOwner
from syncbeat_server.sync.hints.view_cache import MAX_MEAN_SCOPES, ViewCache
from syncbeat_server.sync.hints.view_reader import ViewLimits
from syncbeat_server.sync.hints.view_staleness import MAX_STALENESS_S
from syncbeat_server.sync.hints.view_sweep import ViewSweep
from syncbeat_server.sync.model import Cursor, DeviceKey, Priority, SweepRule
from syncbeat_server.sync.store import device_views, reported_activity, scopes
from tests.support.build import APP, PHONE, SyncFeature, make_directory
from tests.support.fake_clock import FakeClock, wait_until
from tests.support.seed import add_device, add_members, couple, rows_of, value_of
from tests.support.view_reads import AWAY, BOBS, TABLET, heads, move_head, read_view

pytestmark = pytest.mark.store


@pytest.fixture
async def sync(database: Database, clock: FakeClock) -> SyncFeature:
    await couple(database)
    await add_device(database, "ann", "tablet")
    await add_members(database, "anns", "ann")
    return SyncFeature(database, clock, cached_views=100)


async def test_view_cache_rereads_only_invalidated_scopes(sync: SyncFeature) -> None:
    assert [(await read_view(sync))[0] for _ in range(3)] == [1, 0, 0]
    assert await heads(sync, BOBS) == {"couple": 0}
    await move_head(sync)
    assert await heads(sync) == {"couple": 0, "anns": 0}, "nobody told"
    sync.views.scope_changed(APP, "couple")
    assert await heads(sync, BOBS) == {"couple": 1}
    before = sync.held.asked
    assert await heads(sync) == {"couple": 1, "anns": 0}
    assert sync.held.asked == before, "bob's device has brought the scope that they share"
    await move_head(sync, "anns")
    sync.views.scope_changed("another app", "anns")
    sync.views.scope_changed(APP, "unheard of")
    assert (await heads(sync))["anns"] == 0
    sync.views.scope_changed(APP, "anns")
    assert (await heads(sync))["anns"] == 1


async def test_view_cache_shares_concurrent_reads(sync: SyncFeature) -> None:
    views = await asyncio.gather(*(sync.view_reader.read(device) for device in (PHONE, TABLET, BOBS) * 5))
    assert sync.held.asked == 1
    assert [view is not None for view in views] == [True] * 15
    sync.views.scope_changed(APP, "couple")
    await asyncio.gather(*(sync.view_reader.read(device) for device in (PHONE, TABLET, BOBS) * 5))
    assert sync.held.asked == 2


async def test_view_cache_does_not_keep_unregistered_devices(sync: SyncFeature) -> None:
    lost = DeviceKey(APP, "ann", "lost")
    assert [await read_view(sync, lost) for _ in range(2)] == [(1, None)] * 2
    await add_device(sync.database, "ann", "lost")
    assert (await read_view(sync, lost))[1] is not None


async def test_view_cache_is_bypassed_while_wake_ups_cannot_arrive(sync: SyncFeature) -> None:
    await read_view(sync)
    sync.listening = False
    await move_head(sync)
    assert (await heads(sync))["couple"] == 1
    assert (await read_view(sync))[0] == 1
    sync.listening = True
    sync.views.invalidate_all()  # as whoever listens again does
    assert (await read_view(sync))[0] == 1
    assert (await read_view(sync))[0] == 0


async def test_view_cache_entry_expires(sync: SyncFeature) -> None:
    await read_view(sync)
    await sync.clock.advance(MAX_STALENESS_S - 0.1)
    assert (await read_view(sync))[0] == 0
    await sync.clock.advance(0.1)
    assert (await read_view(sync))[0] == 1
    await sync.view_sweep.sweep()
    await read_view(sync)
    for _ in range(3):
        await sync.clock.advance(MAX_STALENESS_S - 1)
        await sync.view_sweep.sweep()
        assert (await read_view(sync))[0] == 0


async def test_view_cache_evicts_least_recently_used(database: Database, sync: SyncFeature) -> None:
    small = SyncFeature(database, sync.clock, cached_views=2)
    await read_view(small, PHONE)
    await read_view(small, TABLET)
    await read_view(small, PHONE)
    await read_view(small, BOBS)
    assert [(await read_view(small, device))[0] for device in (PHONE, BOBS, TABLET)] == [0, 0, 1]
    assert len(small.views) == 2
    assert small.views.stats() == (2, 3, 4, 2), "size, hits, misses, evictions"
    for number in range(2 * MAX_MEAN_SCOPES):
        await add_members(database, f"scope {number}", "ann")
    small.views.invalidate_all()
    assert [(await read_view(small))[0] for _ in range(2)] == [1, 1], "more scopes than are kept in all"
    assert len(small.views) == 0


async def test_view_cache_skips_incomplete_views(sync: SyncFeature) -> None:
    sync = sync.under(views=ViewLimits(max_scopes=2))
    asked, view = await read_view(sync)
    assert view is not None
    assert (asked, len(view.scopes), view.more_scopes) == (1, 2, False)
    assert (await read_view(sync))[0] == 0
    sync = sync.under(views=ViewLimits(usual_scopes=1, max_scopes=1))
    for times in (2, 1):  # how many they are is remembered
        asked, view = await read_view(sync)
        assert view is not None
        assert (asked, len(view.scopes), view.more_scopes) == (times, 1, True)


async def test_view_cache_accepts_cursors_beyond_its_scopes(sync: SyncFeature) -> None:
    sync = sync.under(views=ViewLimits(usual_scopes=1, max_scopes=1))
    await move_head(sync, "anns")
    assert not (await sync.hint(Cursor("couple", "", 0), Cursor("anns", "", 1))).changed
    await move_head(sync, "couple")
    assert (await sync.hint(Cursor("couple", "", 0), Cursor("anns", "", 1))).changed
    await add_members(sync.database, "bobs", "bob")
    with pytest.raises(AccessDenied):
        await sync.hint(Cursor("bobs", "", 0))


Told = Callable[[ViewCache], None]
TOLD: dict[str, Told] = {
    "of the scope": lambda views: views.scope_changed(APP, "couple"),
    "of the user": lambda views: views.user_changed(APP, "ann"),
    "that wake-ups were lost": lambda views: views.invalidate_all(),
}


@pytest.mark.parametrize("renewal", [False, True], ids=["first read", "renewal"])
@pytest.mark.parametrize("told", TOLD.values(), ids=TOLD.keys())
async def test_view_cache_read_in_flight_restores_nothing_older(
    sync: SyncFeature, told: Told, *, renewal: bool
) -> None:
    if renewal:
        await read_view(sync)
        sync.views.scope_changed(APP, "couple")
    sync.held.free.clear()
    reading = asyncio.ensure_future(sync.view_reader.read(PHONE))
    await wait_until(lambda: sync.held.holding)
    await move_head(sync)
    told(sync.views)
    sync.held.free.set()
    await reading
    assert (await heads(sync))["couple"] == 1


async def leave(sync: SyncFeature) -> None:
    await make_directory(sync.database).remove_members(APP, "couple", ["ann"])


async def join(sync: SyncFeature) -> None:
    await add_members(sync.database, "new", "ann", "bob")


async def unregister(sync: SyncFeature) -> None:
    await make_directory(sync.database).unregister(APP, "ann", "phone", by_user=True)


async def report(sync: SyncFeature) -> None:
    async with sync.database.connection() as conn:
        await reported_activity.report_activity(conn, [(PHONE, AWAY)])


async def move_token(sync: SyncFeature) -> None:
    theirs = Registration(APP, "bob", "phone", Platform.ANDROID, "token-of-ann-phone", "", "")
    await make_directory(sync.database).register(theirs, "test", by_user=True)


async def change_platform(sync: SyncFeature) -> None:
    mine = Registration(APP, "ann", "phone", Platform.IOS, "", "", "")
    await make_directory(sync.database).register(mine, "test", by_user=True)


async def boost(sync: SyncFeature) -> None:
    async with sync.database.connection() as conn:
        await scopes.boost(conn, APP, "couple", Priority.FAST, 60.0)


async def writer_comes(sync: SyncFeature) -> None:
    async with sync.database.connection() as conn:
        await scopes.record_writer_presence(conn, [(APP, "bob")], present=True, limit=10)


CHANGES = [leave, join, unregister, report, move_token, change_platform, boost, writer_comes, move_head]


@pytest.mark.parametrize("change", CHANGES)
async def test_view_sweep_finds_changes_without_wake_up(
    sync: SyncFeature, change: Callable[[SyncFeature], Awaitable[None]]
) -> None:
    await sync.view_sweep.sweep()
    await read_view(sync)
    await change(sync)
    assert (await read_view(sync))[0] == 0
    await sync.view_sweep.sweep()
    asked, view = await read_view(sync)
    async with sync.database.connection() as conn:
        (row,) = await device_views.read_device_views(conn, [PHONE])
    assert (view and view._replace(heads=None)) == row
    assert asked == 1
    await sync.view_sweep.sweep()
    if view is not None:
        assert (await read_view(sync))[0] == 0, "what was found once is not found again"


@pytest.mark.parametrize("change", ["seen", "the same again", "locale"])
async def test_view_invalidation_ignores_irrelevant_updates(sync: SyncFeature, change: str) -> None:
    await sync.view_sweep.sweep()
    await read_view(sync)
    if change == "seen":
        async with sync.database.connection() as conn:
            await conn.execute("UPDATE devices SET updated_at = syncbeat_now() WHERE user_id = 'ann'")
    else:
        token = "token-of-ann-phone"
        device = Registration(APP, "ann", "phone", Platform.ANDROID, token, "", "")
        changed = replace(device, locale="de") if change == "locale" else device
        await make_directory(sync.database).register(changed, "test", by_user=False)
        await add_members(sync.database, "couple", "ann")
    await sync.view_sweep.sweep()
    assert (await read_view(sync))[0] == 0


async def test_view_sweep_finds_a_transaction_committed_after_the_last(sync: SyncFeature) -> None:
    await sync.view_sweep.sweep()
    await read_view(sync)
    async with sync.database.transaction(RowOwner(APP, "ann")) as conn:
        await conn.execute("UPDATE devices SET platform = 'IOS'")
        await join(sync)  # a transaction that began later, and is over
        await sync.view_sweep.sweep()
        await read_view(sync)
    assert (await read_view(sync))[0] == 0
    await sync.view_sweep.sweep()
    assert (await read_view(sync))[0] == 1


async def test_view_cache_orders_scopes_by_last_change(sync: SyncFeature) -> None:
    names = [f"scope {number:02}" for number in range(40)]
    for name in names:
        await add_members(sync.database, name, "ann")
        await sync.clock.advance(1)
        await move_head(sync, name)
    assert list(await heads(sync))[:40] == names[::-1]
    await sync.clock.advance(1)
    await move_head(sync, names[7])
    sync.views.scope_changed(APP, names[7])
    assert next(iter(await heads(sync))) == names[7]
    assert (await read_view(sync))[0] == 0


async def test_view_sweep_overflow_clears_the_cache(sync: SyncFeature) -> None:
    sync = sync.under(sweeps=SweepRule(max_rows=2))
    await sync.view_sweep.sweep()
    await read_view(sync)
    await add_members(sync.database, "crowd", "bob", "carl", "dora")
    await sync.view_sweep.sweep()
    assert (await read_view(sync))[0] == 1


async def test_view_sweep_overflow_of_heads_checks_cached_views(sync: SyncFeature) -> None:
    sync = sync.under(sweeps=SweepRule(max_rows=2, heads_per_read=1))
    await sync.view_sweep.sweep()
    for name in ("others", "more", "couple"):
        await add_members(sync.database, name, "eve")
        await move_head(sync, name)
    await sync.view_sweep.sweep()
    await read_view(sync)
    await move_head(sync, "anns")
    await sync.view_sweep.sweep()
    assert (await heads(sync))["anns"] == 1
    assert (await read_view(sync))[0] == 0


async def test_view_invalidations_expire(sync: SyncFeature) -> None:
    await leave(sync)
    assert await value_of(sync.database, "SELECT count(*) > 0 FROM touches")
    await sync.clock.advance(119)
    await sync.view_sweep.sweep()
    assert await value_of(sync.database, "SELECT count(*) > 0 FROM touches")
    await sync.clock.advance(2)
    await sync.view_sweep.sweep()
    assert await value_of(sync.database, "SELECT count(*) = 0 FROM touches")


async def test_view_sweep_survives_an_outage(sync: SyncFeature) -> None:
    sync.view_sweep = ViewSweep(sync.held.as_database, sync.views, sync.clock, lambda: [APP])
    sweeping = asyncio.ensure_future(sync.view_sweep.run())
    await wait_until(lambda: sync.held.asked == 1 and sync.clock.sleepers)
    sync.failing.error = DependencyDown("the database does not answer")
    await sync.clock.advance(5)
    await wait_until(lambda: sync.held.asked == 2 and sync.clock.sleepers)
    sync.failing.error = None
    await sync.clock.advance(5)
    await wait_until(lambda: sync.held.asked == 3 and sync.clock.sleepers)
    sweeping.cancel()
    await asyncio.wait([sweeping])
    assert sweeping.cancelled()


async def test_view_cache_rereads_for_a_newer_cursor(sync: SyncFeature) -> None:
    epoch = await value_of(sync.database, "SELECT epoch FROM scopes WHERE scope = 'couple'")
    assert not (await sync.hint(Cursor("couple", epoch, 0))).changed
    await move_head(sync)
    assert not (await sync.hint(Cursor("couple", epoch, 0))).changed, "nobody told"
    assert not (await sync.hint(Cursor("couple", epoch, 1))).changed
    assert (await sync.hint(Cursor("couple", epoch, 0))).changed, "known since the device showed it"
    await join(sync)
    assert not (await sync.hint(Cursor("new", "", 0))).changed
    with pytest.raises(AccessDenied):
        await sync.hint(Cursor("nobody's"))


async def test_cursor_recorder_records_a_repeated_cursor_once(sync: SyncFeature) -> None:
    await move_head(sync)
    epoch = await value_of(sync.database, "SELECT epoch FROM scopes WHERE scope = 'couple'")
    for times in (1, 0):
        await sync.hint(Cursor("couple", epoch, 1))
        await sync.cursors.flush()
        assert len(await rows_of(sync.database, "DELETE FROM device_cursors RETURNING 1")) == times
