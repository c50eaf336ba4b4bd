"""Reading feeds: pages, hints, what devices have seen, and streams that miss nothing."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

import pytest

from syncbeat_server.errors import AccessDenied, DependencyDown, NotFound, TokenExpired
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.sync.model import (
    Activity,
    ActivityState,
    Checkpoint,
    Cursor,
    DeviceKey,
    Drain,
    Poll,
    Priority,
    Reset,
)
from syncbeat_server.sync.streams import hint_stream
from syncbeat_server.sync.streams.subscription import Subscription
from tests.fakes import FakeClock, settle, wait_until
from tests.storage.house import COME_BACK_PER_S, PHONE, House, keys, stream, tell
from tests.storage.stage import APP, add_members, couple, directory, new_publisher, rows_of, until, value_of

pytestmark = pytest.mark.usefixtures("database", "clock")


@pytest.fixture
async def house(database: Database, clock: FakeClock) -> House:
    await couple(database)
    return House(database, clock)


async def test_a_feed_is_read_in_pages_and_says_each_key_once(house: House) -> None:
    await house.publish("a", "b", "c", "d")
    head = await house.publish("b")
    first = await house.page(Cursor("couple"), limit=3)
    assert (keys(first), first.more, first.reset) == (["a", "c", "d"], True, False)
    second = await house.page(first.next, limit=3)
    assert (keys(second), second.more, second.next) == (["b"], False, head)
    third = await house.page(second.next)
    assert (keys(third), third.next) == ([], head)


@pytest.mark.parametrize("cursor", [Cursor("couple", "another epoch", 1), Cursor("couple", "", 3)])
async def test_a_cursor_of_another_life_of_the_feed_starts_again(house: House, cursor: Cursor) -> None:
    await house.publish("a", "b")
    page = await house.page(cursor)
    assert page.reset
    assert keys(page) == ["a", "b"]


async def test_a_reader_sees_its_scopes_and_no_others(house: House) -> None:
    await house.publish("a")
    await house.publish("x", scope="private")
    wanted = [Cursor("couple"), Cursor("private"), Cursor("no such scope")]
    found = await house.reader.pages(APP, "ann", wanted, 10)
    assert [page is not None for page in found] == [True, False, False]
    assert [state is not None for state in await house.reader.heads(APP, None, ["private", "none"])] == [True, False]
    assert await house.reader.heads("other", None, ["couple"]) == [None]
    assert await house.reader.heads(APP, "eve", ["couple"]) == [None]


async def test_readers_at_once_each_get_their_own_page(house: House) -> None:
    for scope in ("couple", "other"):
        await house.publish("a", "b", "c", scope=scope)
    pages = await asyncio.gather(
        *(
            house.reader.pages(APP, user, [Cursor(scope, "", after)], 10)
            for user in ("ann", None)
            for scope in ("couple", "other")
            for after in (0, 2)
        )
    )
    assert [None if page is None else keys(page) for (page,) in pages] == [
        ["a", "b", "c"],
        ["c"],
        None,
        None,
        ["a", "b", "c"],
        ["c"],
        ["a", "b", "c"],
        ["c"],
    ]


async def test_a_hint_says_whether_there_is_news(house: House) -> None:
    assert not (await house.hint()).changed
    head = await house.publish("a", "b")
    assert (await house.hint()).changed
    assert not (await house.hint(head)).changed
    assert not (await house.hint(Cursor("couple", "", 2))).changed
    assert (await house.hint(Cursor("couple", head.epoch, 1))).changed
    assert (await house.hint(Cursor("couple", "another epoch", 2))).changed
    assert (await house.hint(head)).heads == (head,)


async def test_a_hint_goes_by_the_activity_that_was_reported_last(house: House) -> None:
    for number in range(30):
        await house.publish(f"k{number}")
    looking = await house.hint()
    away = Activity(ActivityState.BACKGROUND, idle_s=600.0)
    reported = await house.service.report_activity(PHONE, away, is_user=True)
    assert reported.poll_interval_s > looking.poll_interval_s
    assert (await house.hint()).poll_interval_s == reported.poll_interval_s
    assert (await house.hint(activity=Activity())).poll_interval_s == looking.poll_interval_s
    await house.clock.advance(7200)
    assert (await house.hint()).priority is Priority.SLOW


async def test_a_hint_is_booked_for_who_will_come_by_it(house: House) -> None:
    await house.publish("a")
    await house.service.list_changes(APP, PHONE.user_id, PHONE, Cursor("couple"), 10)
    assert house.pacing.book.take_unshared() == {}, "it comes by the hint for all of its scopes"
    hint = await house.hint(explain=True)
    assert house.pacing.book.take_unshared() == {int(hint.next_poll_at.timestamp()): 1}
    assert "load is 0% of what can be borne" in hint.explanation


async def test_a_writer_who_comes_shortens_the_others_intervals(house: House) -> None:
    await house.publish("a")
    await house.clock.advance(3600)
    quiet = (await house.hint()).poll_interval_s
    await house.service.report_activity(PHONE, Activity(), is_user=True)
    stream = Subscription(DeviceKey(APP, "bob", "phone"), all_scopes=False)
    house.hub.add(stream)
    house.hub.follow(stream, ["couple"])
    await house.writers.flush()
    assert stream.take_dirty() == {"couple"}  # whoever keeps the scope hears that its outlook is another one
    came = (await house.hint()).poll_interval_s
    assert came < quiet
    await house.service.report_activity(PHONE, Activity(), is_user=True)
    await house.writers.flush()
    assert not stream.take_dirty()  # that is known
    await house.service.report_activity(PHONE, Activity(ActivityState.BACKGROUND), is_user=True)
    await house.writers.flush()
    assert stream.take_dirty() == {"couple"}
    assert (await house.hint(activity=Activity())).poll_interval_s > came


async def test_a_hint_is_for_registered_devices_and_their_scopes(house: House) -> None:
    await house.publish("x", scope="private")
    with pytest.raises(AccessDenied):
        await house.hint(Cursor("private"))
    nowhere = DeviceKey(APP, "ann", "lost")
    with pytest.raises(AccessDenied):
        await house.service.hint(Poll(nowhere), is_user=True)
    with pytest.raises(NotFound):
        await house.service.hint(Poll(nowhere), is_user=False)
    page, _ = await house.service.list_changes(APP, None, None, Cursor("private"), 10)
    assert keys(page) == ["x"]
    with pytest.raises(AccessDenied):
        await house.service.list_changes(APP, "ann", PHONE, Cursor("private"), 10)
    with pytest.raises(NotFound):
        await house.service.list_changes(APP, None, None, Cursor("none"), 10)


async def seen_by_ann(house: House) -> list[tuple[Any, ...]]:
    await house.cursors.flush()
    return await rows_of(house.database, "SELECT epoch, sequence FROM device_cursors")


async def test_the_newest_cursor_that_a_device_showed_is_kept(house: House) -> None:
    head = await house.publish("a", "b", "c")
    await house.hint(head)
    assert await seen_by_ann(house) == [(head.epoch, 3)]
    house.cursors.record_shown(PHONE, [Cursor("couple", head.epoch, 1)])
    assert await seen_by_ann(house) == [(head.epoch, 3)]  # what is written already
    head = await house.publish("d")
    house.cursors.record_shown(PHONE, [head])
    house.cursors.record_shown(PHONE, [Cursor("couple", head.epoch, 2), Cursor("couple"), Cursor("couple", "", 9)])
    assert await seen_by_ann(house) == [(head.epoch, 4)]  # nor what still waits to be written


async def fetched_by_ann(house: House) -> list[tuple[Any, ...]]:
    await house.cursors.flush()
    return await rows_of(house.database, "SELECT epoch, sequence, fetched FROM device_cursors")


async def test_up_to_where_a_devices_calls_were_answered_is_kept_beside_what_it_showed(house: House) -> None:
    first = await house.publish("a")
    await house.hint()
    assert await fetched_by_ann(house) == [], "who shows no cursor does not say that it fetches"
    await house.hint(Cursor("couple"))
    assert await fetched_by_ann(house) == [(first.epoch, 0, 1)]
    head = await house.publish("b", "c")
    await house.hint(first)
    assert await fetched_by_ann(house) == [(first.epoch, 1, 3)]
    await house.service.list_changes(APP, "ann", PHONE, Cursor("couple", head.epoch, 1), 1)
    await house.hint(head)
    assert await fetched_by_ann(house) == [(first.epoch, 3, 3)]
    house.cursors.record_fetched(PHONE, [Cursor("couple", head.epoch, 9), Cursor("none", head.epoch, 1)])
    assert await fetched_by_ann(house) == [(first.epoch, 3, 3)], "there is no such sequence"


async def test_in_a_new_epoch_a_device_has_neither_shown_nor_fetched_anything(house: House) -> None:
    head = await house.publish("a", "b")
    await house.service.list_changes(APP, "ann", PHONE, head, 10)
    assert await fetched_by_ann(house) == [(head.epoch, 2, 2)]
    async with house.database.connection() as conn:
        await conn.execute("UPDATE scopes SET epoch = 'new'")
    house.cursors.record_shown(PHONE, [Cursor("couple", "new", 1)])
    assert await fetched_by_ann(house) == [("new", 1, None)]
    async with house.database.connection() as conn:
        await conn.execute("UPDATE scopes SET epoch = 'newer'")
    await house.service.list_changes(APP, "ann", PHONE, head, 10)
    assert await fetched_by_ann(house) == [("newer", 0, 2)]


async def test_who_asks_again_and_again_with_an_old_cursor_costs_one_statement(house: House) -> None:
    head = await house.publish("a")
    await house.hint(Cursor("couple"))
    await house.cursors.flush()
    house.refuses.error = DependencyDown("no statement is expected")
    house.cursors.record_fetched(PHONE, [head])
    await house.cursors.flush()


async def test_what_cannot_have_been_seen_is_not_recorded(house: House) -> None:
    head = await house.publish("a")
    house.cursors.record_shown(PHONE, [Cursor("couple", head.epoch, 2)])
    house.cursors.record_shown(DeviceKey(APP, "ann", "lost"), [head])
    house.cursors.record_shown(PHONE, [Cursor("couple", "another epoch", 1), Cursor("none", "e", 1)])
    assert await seen_by_ann(house) == []


async def test_cursors_are_recorded_when_the_database_is_back(house: House) -> None:
    head = await house.publish("a")
    recording = asyncio.ensure_future(house.cursors.run())
    house.refuses.error = DependencyDown("the database does not answer")
    house.cursors.record_shown(PHONE, [head])
    await wait_until(lambda: house.refuses.refused)
    house.refuses.error = None
    await house.clock.advance(1)
    await until(lambda: value_of(house.database, "SELECT count(*) = 1 FROM device_cursors"))
    recording.cancel()
    await asyncio.wait([recording])
    assert recording.cancelled()


async def test_a_sweep_finds_what_no_wake_up_told(house: House) -> None:
    stream = Subscription(PHONE, all_scopes=False)
    house.hub.add(stream)
    house.hub.follow(stream, ["couple", "quiet"])
    await house.publish("a")
    await house.publish("q", scope="quiet")
    await house.sweep.sweep(5.0)
    stream.take_dirty()
    quietly = new_publisher(house.database, house.clock)
    house.publisher = quietly
    await house.clock.advance(20)
    await house.publish("b")
    await house.sweep.sweep(5.0)
    assert stream.take_dirty() == {"couple"}
    await house.clock.advance(16)
    await house.sweep.sweep(5.0)
    assert stream.take_dirty() == set()


async def test_a_stream_goes_on_where_its_cursor_is_and_then_tells_what_is_new(house: House) -> None:
    await house.publish("a", "b")
    async with stream(house, Cursor("couple", "", 1)) as reader:
        await wait_until(lambda: reader.changes() == [("b", 2)])
        head = await house.publish("c")
        await wait_until(lambda: reader.changes() == [("b", 2), ("c", 3)])
        await tell(house)
        await wait_until(lambda: (head,) in [e.cursors for e in reader.events if isinstance(e, Checkpoint)])
    assert len(house.hub) == 0
    assert await seen_by_ann(house) == [(head.epoch, 3)]


async def test_a_stream_from_now_tells_nothing_old(house: House) -> None:
    await house.publish("a")
    async with stream(house) as reader:
        await house.publish("b")
        await wait_until(lambda: reader.changes() == [("b", 2)])


async def test_a_stream_with_a_cursor_of_another_life_is_reset(house: House) -> None:
    head = await house.publish("a")
    async with stream(house, Cursor("couple", "another epoch", 1)) as reader:
        assert [event.head for event in reader.events if isinstance(event, Reset)] == [head]
        await house.publish("b")
        await wait_until(lambda: reader.changes() == [("b", 2)])


async def test_a_stream_of_a_scope_that_is_not_the_users_is_refused(house: House) -> None:
    await house.publish("x", scope="private")
    async with stream(house, Cursor("private")) as reader:
        assert isinstance(reader.error, AccessDenied)
    assert len(house.hub) == 0


async def test_a_stream_ends_with_its_token_and_when_the_process_drains(house: House) -> None:
    async with stream(house, expires_at=house.clock.now() + timedelta(seconds=10)) as reader:
        await house.clock.advance(10)
        house.hub.invalidate_all()
        await wait_until(lambda: reader.ended)
        assert isinstance(reader.error, TokenExpired)
    async with stream(house) as reader:
        house.hub.drain()
        await wait_until(lambda: reader.ended)
        assert isinstance(reader.events[-1], Drain)
        assert isinstance(reader.events[-2], Checkpoint)


async def test_streams_that_are_drained_together_come_back_one_after_the_other(house: House) -> None:
    async with AsyncExitStack() as stack:
        readers = [await stack.enter_async_context(stream(house)) for _ in range(40)]
        house.hub.drain()
        await wait_until(lambda: all(reader.ended for reader in readers))
    delays = sorted(event.reconnect_delay_s for reader in readers if isinstance(event := reader.events[-1], Drain))
    assert len(delays) == len(readers)
    assert delays[-1] >= len(readers) / COME_BACK_PER_S
    most_at_once = max(sum(at <= other < at + 2.0 for other in delays) for at in delays)
    assert most_at_once <= 4.0 * COME_BACK_PER_S


async def test_a_stream_outlives_an_outage_and_misses_nothing(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hint_stream, "RETRY_S", 0.01)
    await house.publish("x", scope="chat")
    await house.clock.advance(60)  # longer ago than a transaction can last: not news to whoever joins
    async with stream(house) as reader:
        house.refuses.error = DependencyDown("the database does not answer")
        await add_members(house.database, "chat", "ann")
        house.hub.members_changed(APP, "ann")
        await house.publish("a")
        await wait_until(lambda: house.refuses.refused > 2)
        house.refuses.error = None
        await wait_until(lambda: reader.changes() == [("a", 1)])
        await wait_until(
            lambda: (APP, "chat") in house.hub.followed_scopes(), what="it knows the scope that was joined"
        )
        await house.publish("y", scope="chat")
        await wait_until(lambda: ("y", 2) in reader.changes())
        assert not reader.ended


async def test_a_member_who_leaves_hears_no_more(house: House) -> None:
    async with stream(house) as reader:
        await directory(house.database).remove_members(APP, "couple", ["ann"])
        await house.publish("secret")
        await until(lambda: settled_without(house, "couple"))
        await settle()
        assert reader.changes() == []


async def settled_without(house: House, scope: str) -> bool:
    """Whether nobody follows the scope."""
    return (APP, scope) not in house.hub.followed_scopes()
