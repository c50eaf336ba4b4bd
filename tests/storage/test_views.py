"""What hints are made of is read once, is bounded, and is never older than what was told, or than a sweep."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import cast

import pytest

from syncbeat_server.directory.model import Platform, Registration
from syncbeat_server.errors import AccessDenied, DependencyDown
from syncbeat_server.storage.postgres.database import Database, RowOwner
from syncbeat_server.sync.hints import view_cache as views
from syncbeat_server.sync.hints.view_cache import MAX_MEAN_SCOPES, TRUSTED_S, ViewCache
from syncbeat_server.sync.hints.view_sweep import ViewSweep
from syncbeat_server.sync.model import Cursor, DeviceKey, Priority
from syncbeat_server.sync.store import device_views, scopes
from syncbeat_server.sync.streams import head_sweep
from tests.fakes import FakeClock, wait_until
from tests.storage.stage import APP, add_device, add_members, couple, directory, rows_of, value_of
from tests.storage.views_house import AWAY, BOBS, PHONE, TABLET, House


@pytest.fixture
async def house(database: Database, clock: FakeClock) -> House:
    await couple(database)
    await add_device(database, "ann", "tablet")
    await add_members(database, "anns", "ann")
    return House(database, clock)


async def test_a_view_is_read_once_and_then_only_what_is_so_no_longer(house: House) -> None:
    assert [(await house.asked_for())[0] for _ in range(3)] == [1, 0, 0]
    assert await house.heads(BOBS) == {"couple": 0}
    await house.move_head()
    assert await house.heads() == {"couple": 0, "anns": 0}, "nobody told"
    house.views.scope_changed(APP, "couple")
    assert await house.heads(BOBS) == {"couple": 1}
    before = house.watched.asked
    assert await house.heads() == {"couple": 1, "anns": 0}
    assert house.watched.asked == before, "bob's device has brought the scope that they share"
    await house.move_head("anns")
    house.views.scope_changed("another app", "anns")
    house.views.scope_changed(APP, "unheard of")
    assert (await house.heads())["anns"] == 0
    house.views.scope_changed(APP, "anns")
    assert (await house.heads())["anns"] == 1


async def test_many_at_once_are_one_question(house: House) -> None:
    views = await asyncio.gather(*(house.view_reader.read(device) for device in (PHONE, TABLET, BOBS) * 5))
    assert house.watched.asked == 1
    assert [view is not None for view in views] == [True] * 15
    house.views.scope_changed(APP, "couple")
    await asyncio.gather(*(house.view_reader.read(device) for device in (PHONE, TABLET, BOBS) * 5))
    assert house.watched.asked == 2


async def test_who_is_not_registered_is_asked_for_each_time(house: House) -> None:
    lost = DeviceKey(APP, "ann", "lost")
    assert [await house.asked_for(lost) for _ in range(2)] == [(1, None)] * 2
    await add_device(house.database, "ann", "lost")
    assert (await house.asked_for(lost))[1] is not None


async def test_nothing_is_believed_while_wake_ups_cannot_arrive(house: House) -> None:
    await house.asked_for()
    house.listening = False
    await house.move_head()
    assert (await house.heads())["couple"] == 1
    assert (await house.asked_for())[0] == 1
    house.listening = True
    house.views.invalidate_all()  # as whoever listens again does
    assert (await house.asked_for())[0] == 1
    assert (await house.asked_for())[0] == 0


async def test_what_nobody_looked_at_is_not_believed_for_long(house: House) -> None:
    await house.asked_for()
    await house.clock.advance(TRUSTED_S - 0.1)
    assert (await house.asked_for())[0] == 0
    await house.clock.advance(0.1)
    assert (await house.asked_for())[0] == 1
    await house.sweep.sweep()
    await house.asked_for()
    for _ in range(3):
        await house.clock.advance(TRUSTED_S - 1)
        await house.sweep.sweep()
        assert (await house.asked_for())[0] == 0


async def test_the_views_are_bounded_and_those_unused_for_longest_go_first(database: Database, house: House) -> None:
    small = House(database, house.clock, size=2)
    await small.asked_for(PHONE)
    await small.asked_for(TABLET)
    await small.asked_for(PHONE)
    await small.asked_for(BOBS)
    assert [(await small.asked_for(device))[0] for device in (PHONE, BOBS, TABLET)] == [0, 0, 1]
    assert len(small.views) == 2
    for number in range(2 * MAX_MEAN_SCOPES):
        await add_members(database, f"scope {number}", "ann")
    small.views.invalidate_all()
    assert [(await small.asked_for())[0] for _ in range(2)] == [1, 1], "more scopes than are kept in all"
    assert len(small.views) == 0


async def test_a_view_that_does_not_hold_all_scopes_is_not_kept(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "MAX_SCOPES", 2)
    asked, view = await house.asked_for()
    assert view is not None
    assert (asked, len(view.scopes), view.more_scopes) == (1, 2, False)
    assert (await house.asked_for())[0] == 0
    monkeypatch.setattr(views, "MAX_SCOPES", 1)
    monkeypatch.setattr(views, "_USUAL_SCOPES", 1)
    house.views.invalidate_all()
    for times in (2, 1):  # how many they are is remembered
        asked, view = await house.asked_for()
        assert view is not None
        assert (asked, len(view.scopes), view.more_scopes) == (times, 1, True)


async def test_a_member_of_more_scopes_than_a_view_has_may_show_each(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "MAX_SCOPES", 1)
    monkeypatch.setattr(views, "_USUAL_SCOPES", 1)
    await house.move_head("anns")
    assert not await house.hint(Cursor("couple", "", 0), Cursor("anns", "", 1))
    await house.move_head("couple")
    assert await house.hint(Cursor("couple", "", 0), Cursor("anns", "", 1))
    await add_members(house.database, "bobs", "bob")
    with pytest.raises(AccessDenied):
        await house.hint(Cursor("bobs", "", 0))


Told = Callable[[ViewCache], None]
TOLD: dict[str, Told] = {
    "of the scope": lambda views: views.scope_changed(APP, "couple"),
    "of the user": lambda views: views.user_changed(APP, "ann"),
    "that wake-ups were lost": lambda views: views.invalidate_all(),
}


@pytest.mark.parametrize("renewal", [False, True], ids=["first read", "renewal"])
@pytest.mark.parametrize("told", TOLD.values(), ids=TOLD.keys())
async def test_a_read_under_way_brings_back_nothing_older(house: House, told: Told, *, renewal: bool) -> None:
    if renewal:
        await house.asked_for()
        house.views.scope_changed(APP, "couple")
    house.watched.free.clear()
    reading = asyncio.ensure_future(house.view_reader.read(PHONE))
    await wait_until(lambda: house.watched.holding)
    await house.move_head()
    told(house.views)
    house.watched.free.set()
    await reading
    assert (await house.heads())["couple"] == 1


async def leave(house: House) -> None:
    await directory(house.database).remove_members(APP, "couple", ["ann"])


async def join(house: House) -> None:
    await add_members(house.database, "new", "ann", "bob")


async def unregister(house: House) -> None:
    await directory(house.database).unregister(APP, "ann", "phone", by_user=True)


async def report(house: House) -> None:
    async with house.database.connection() as conn:
        await device_views.report_activity(conn, [(PHONE, AWAY)])


async def move_token(house: House) -> None:
    theirs = Registration(APP, "bob", "phone", Platform.ANDROID, "token-of-ann-phone", "", "")
    await directory(house.database).register(theirs, "test", by_user=True)


async def change_platform(house: House) -> None:
    mine = Registration(APP, "ann", "phone", Platform.IOS, "", "", "")
    await directory(house.database).register(mine, "test", by_user=True)


async def boost(house: House) -> None:
    async with house.database.connection() as conn:
        await scopes.boost(conn, APP, "couple", Priority.FAST, 60.0)


async def writer_comes(house: House) -> None:
    async with house.database.connection() as conn:
        await scopes.record_writer_presence(conn, [(APP, "bob")], present=True, limit=10)


CHANGES = [leave, join, unregister, report, move_token, change_platform, boost, writer_comes, House.move_head]


@pytest.mark.parametrize("change", CHANGES)
async def test_a_sweep_finds_what_no_wake_up_told(house: House, change: Callable[[House], Awaitable[None]]) -> None:
    await house.sweep.sweep()
    await house.asked_for()
    await change(house)
    assert (await house.asked_for())[0] == 0
    await house.sweep.sweep()
    asked, view = await house.asked_for()
    async with house.database.connection() as conn:
        (row,) = await device_views.read_device_views(conn, [PHONE])
    assert (view and view._replace(heads=None)) == row
    assert asked == 1
    await house.sweep.sweep()
    if view is not None:
        assert (await house.asked_for())[0] == 0, "what was found once is not found again"


@pytest.mark.parametrize("change", ["seen", "the same again", "locale"])
async def test_what_no_hint_depends_on_is_no_touch(house: House, change: str) -> None:
    await house.sweep.sweep()
    await house.asked_for()
    if change == "seen":
        async with house.database.connection() as conn:
            await conn.execute("UPDATE devices SET updated_at = syncbeat_now() WHERE user_id = 'ann'")
    else:
        token = "token-of-ann-phone"
        device = Registration(APP, "ann", "phone", Platform.ANDROID, token, "", "")
        changed = replace(device, locale="de") if change == "locale" else device
        await directory(house.database).register(changed, "test", by_user=False)
        await add_members(house.database, "couple", "ann")
    await house.sweep.sweep()
    assert (await house.asked_for())[0] == 0


async def test_a_transaction_that_ends_after_a_sweep_is_found_by_the_next(house: House) -> None:
    await house.sweep.sweep()
    await house.asked_for()
    async with house.database.transaction(RowOwner(APP, "ann")) as conn:
        await conn.execute("UPDATE devices SET platform = 'IOS'")
        await join(house)  # a transaction that began later, and is over
        await house.sweep.sweep()
        await house.asked_for()
    assert (await house.asked_for())[0] == 0
    await house.sweep.sweep()
    assert (await house.asked_for())[0] == 1


async def test_of_many_scopes_those_that_changed_last_come_first(house: House) -> None:
    names = [f"scope {number:02}" for number in range(40)]
    for name in names:
        await add_members(house.database, name, "ann")
        await house.clock.advance(1)
        await house.move_head(name)
    assert list(await house.heads())[:40] == names[::-1]
    await house.clock.advance(1)
    await house.move_head(names[7])
    house.views.scope_changed(APP, names[7])
    assert next(iter(await house.heads())) == names[7]
    assert (await house.asked_for())[0] == 0


async def test_too_much_to_look_at_is_everything(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    await house.sweep.sweep()
    monkeypatch.setattr(head_sweep, "_MAX_CHANGED", 2)
    await house.asked_for()
    await add_members(house.database, "crowd", "bob", "carl", "dora")
    await house.sweep.sweep()
    assert (await house.asked_for())[0] == 1


async def test_where_too_many_heads_move_those_that_are_kept_are_looked_at(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    await house.sweep.sweep()
    monkeypatch.setattr(head_sweep, "_MAX_CHANGED", 2)
    monkeypatch.setattr(head_sweep, "_CHUNK", 1)
    for name in ("others", "more", "couple"):
        await add_members(house.database, name, "eve")
        await house.move_head(name)
    await house.sweep.sweep()
    await house.asked_for()
    await house.move_head("anns")
    await house.sweep.sweep()
    assert (await house.heads())["anns"] == 1
    assert (await house.asked_for())[0] == 0


async def test_touches_are_forgotten(house: House) -> None:
    await leave(house)
    assert await value_of(house.database, "SELECT count(*) > 0 FROM touches")
    await house.clock.advance(119)
    await house.sweep.sweep()
    assert await value_of(house.database, "SELECT count(*) > 0 FROM touches")
    await house.clock.advance(2)
    await house.sweep.sweep()
    assert await value_of(house.database, "SELECT count(*) = 0 FROM touches")


async def test_the_sweep_goes_on_after_an_outage(house: House) -> None:
    house.sweep = ViewSweep(cast(Database, house.watched), house.views, house.clock, [APP])
    sweeping = asyncio.ensure_future(house.sweep.run())
    await wait_until(lambda: house.watched.asked == 1 and house.clock.sleepers)
    house.watched.error = DependencyDown("the database does not answer")
    await house.clock.advance(5)
    await wait_until(lambda: house.watched.asked == 2 and house.clock.sleepers)
    house.watched.error = None
    await house.clock.advance(5)
    await wait_until(lambda: house.watched.asked == 3 and house.clock.sleepers)
    sweeping.cancel()
    await asyncio.wait([sweeping])
    assert sweeping.cancelled()


async def test_who_shows_more_than_is_known_here_is_looked_up(house: House) -> None:
    epoch = await value_of(house.database, "SELECT epoch FROM scopes WHERE scope = 'couple'")
    assert not await house.hint(Cursor("couple", epoch, 0))
    await house.move_head()
    assert not await house.hint(Cursor("couple", epoch, 0)), "nobody told"
    assert not await house.hint(Cursor("couple", epoch, 1))
    assert await house.hint(Cursor("couple", epoch, 0)), "known since the device showed it"
    await join(house)
    assert not await house.hint(Cursor("new", "", 0))
    with pytest.raises(AccessDenied):
        await house.hint(Cursor("nobody's"))


async def test_a_cursor_that_is_shown_again_is_noted_once(house: House) -> None:
    await house.move_head()
    epoch = await value_of(house.database, "SELECT epoch FROM scopes WHERE scope = 'couple'")
    for times in (1, 0):
        await house.hint(Cursor("couple", epoch, 1))
        await house.cursors.flush()
        assert len(await rows_of(house.database, "DELETE FROM device_cursors RETURNING 1")) == times
