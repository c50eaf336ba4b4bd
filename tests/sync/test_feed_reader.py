"""Reading feeds: pages, hints, what devices have seen, and streams that miss nothing."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

import pytest

from syncbeat_server.errors import AccessDenied, DependencyDown, NotFound, SyncbeatError, TokenExpired
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.storage.postgres.driver_errors import TooManyWait
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
from syncbeat_server.sync.streams.hint_stream import WatchRequest
from syncbeat_server.sync.streams.stream_context import StreamRule
from syncbeat_server.sync.streams.subscription import Subscription
from tests.support.build import APP, COME_BACK_PER_S, PHONE, SyncFeature, make_directory
from tests.support.fake_clock import FakeClock, settle, wait_until
from tests.support.seed import add_members, couple, rows_of, until, value_of
from tests.support.sync_streams import keys, let_in, stream, tell

pytestmark = [pytest.mark.store, pytest.mark.usefixtures("database", "clock")]


@pytest.fixture
async def sync(database: Database, clock: FakeClock) -> SyncFeature:
    await couple(database)
    return SyncFeature(database, clock)


async def test_feed_pages_name_each_key_once(sync: SyncFeature) -> None:
    await sync.publish("a", "b", "c", "d")
    head = await sync.publish("b")
    first = await sync.page(Cursor("couple"), limit=3)
    assert (keys(first), first.more, first.reset) == (["a", "c", "d"], True, False)
    second = await sync.page(first.next, limit=3)
    assert (keys(second), second.more, second.next) == (["b"], False, head)
    third = await sync.page(second.next)
    assert (keys(third), third.next) == ([], head)


@pytest.mark.parametrize("cursor", [Cursor("couple", "another epoch", 1), Cursor("couple", "", 3)])
async def test_feed_cursor_of_another_epoch_restarts(sync: SyncFeature, cursor: Cursor) -> None:
    await sync.publish("a", "b")
    page = await sync.page(cursor)
    assert page.reset
    assert keys(page) == ["a", "b"]


async def test_feed_reader_sees_its_scopes_only(sync: SyncFeature) -> None:
    await sync.publish("a")
    await sync.publish("x", scope="private")
    wanted = [Cursor("couple"), Cursor("private"), Cursor("no such scope")]
    found = await sync.reader.pages(APP, "ann", wanted, 10)
    assert [page is not None for page in found] == [True, False, False]
    assert [state is not None for state in await sync.reader.heads(APP, None, ["private", "none"])] == [True, False]
    assert await sync.reader.heads("other", None, ["couple"]) == [None]
    assert await sync.reader.heads(APP, "eve", ["couple"]) == [None]


async def test_feed_readers_at_once_get_their_own_pages(sync: SyncFeature) -> None:
    for scope in ("couple", "other"):
        await sync.publish("a", "b", "c", scope=scope)
    pages = await asyncio.gather(
        *(
            sync.reader.pages(APP, user, [Cursor(scope, "", after)], 10)
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


async def test_hint_says_whether_there_is_news(sync: SyncFeature) -> None:
    assert not (await sync.hint()).changed
    head = await sync.publish("a", "b")
    assert (await sync.hint()).changed
    assert not (await sync.hint(head)).changed
    assert not (await sync.hint(Cursor("couple", "", 2))).changed
    assert (await sync.hint(Cursor("couple", head.epoch, 1))).changed
    assert (await sync.hint(Cursor("couple", "another epoch", 2))).changed
    assert (await sync.hint(head)).heads == (head,)


async def test_hint_follows_the_last_reported_activity(sync: SyncFeature) -> None:
    for number in range(30):
        await sync.publish(f"k{number}")
    looking = await sync.hint()
    away = Activity(ActivityState.BACKGROUND, idle_s=600.0)
    reported = await sync.service.report_activity(PHONE, away, is_user=True)
    assert reported.poll_interval_s > looking.poll_interval_s
    assert (await sync.hint()).poll_interval_s == reported.poll_interval_s
    assert (await sync.hint(activity=Activity())).poll_interval_s == looking.poll_interval_s
    await sync.clock.advance(7200)
    assert (await sync.hint()).priority is Priority.SLOW


async def test_hint_books_the_expected_arrival(sync: SyncFeature) -> None:
    await sync.publish("a")
    await sync.service.list_changes(APP, PHONE.user_id, PHONE, Cursor("couple"), 10)
    assert sync.pacing.book.take_unshared() == {}, "it comes by the hint for all of its scopes"
    hint = await sync.hint(explain=True)
    assert sync.pacing.book.take_unshared() == {int(hint.next_poll_at): 1}
    assert "load is 0% of what can be borne" in hint.explanation


async def test_writer_presence_shortens_the_intervals_of_others(sync: SyncFeature) -> None:
    await sync.publish("a")
    await sync.clock.advance(3600)
    quiet = (await sync.hint()).poll_interval_s
    await sync.service.report_activity(PHONE, Activity(), is_user=True)
    stream = Subscription(DeviceKey(APP, "bob", "phone"), all_scopes=False)
    sync.hub.add(stream)
    sync.hub.follow(stream, ["couple"])
    await sync.writers.flush()
    assert stream.take_dirty() == {"couple"}  # whoever keeps the scope hears that its outlook is another one
    came = (await sync.hint()).poll_interval_s
    assert came < quiet
    await sync.service.report_activity(PHONE, Activity(), is_user=True)
    await sync.writers.flush()
    assert not stream.take_dirty()  # that is known
    await sync.service.report_activity(PHONE, Activity(ActivityState.BACKGROUND), is_user=True)
    await sync.writers.flush()
    assert stream.take_dirty() == {"couple"}
    assert (await sync.hint(activity=Activity())).poll_interval_s > came


async def test_hint_is_for_registered_devices_and_their_scopes(sync: SyncFeature) -> None:
    await sync.publish("x", scope="private")
    with pytest.raises(AccessDenied):
        await sync.hint(Cursor("private"))
    nowhere = DeviceKey(APP, "ann", "lost")
    with pytest.raises(AccessDenied):
        await sync.service.hint(Poll(nowhere), is_user=True)
    with pytest.raises(NotFound):
        await sync.service.hint(Poll(nowhere), is_user=False)
    page, _ = await sync.service.list_changes(APP, None, None, Cursor("private"), 10)
    assert keys(page) == ["x"]
    with pytest.raises(AccessDenied):
        await sync.service.list_changes(APP, "ann", PHONE, Cursor("private"), 10)
    with pytest.raises(NotFound):
        await sync.service.list_changes(APP, None, None, Cursor("none"), 10)


async def seen_by_ann(sync: SyncFeature) -> list[tuple[Any, ...]]:
    await sync.cursors.flush()
    return await rows_of(sync.database, "SELECT epoch, sequence FROM device_cursors")


async def test_cursor_recorder_keeps_the_newest_cursor(sync: SyncFeature) -> None:
    head = await sync.publish("a", "b", "c")
    await sync.hint(head)
    assert await seen_by_ann(sync) == [(head.epoch, 3)]
    sync.cursors.record_shown(PHONE, [Cursor("couple", head.epoch, 1)])
    assert await seen_by_ann(sync) == [(head.epoch, 3)]  # what is written already
    head = await sync.publish("d")
    sync.cursors.record_shown(PHONE, [head])
    sync.cursors.record_shown(PHONE, [Cursor("couple", head.epoch, 2), Cursor("couple"), Cursor("couple", "", 9)])
    assert await seen_by_ann(sync) == [(head.epoch, 4)]  # nor what still waits to be written


async def fetched_by_ann(sync: SyncFeature) -> list[tuple[Any, ...]]:
    await sync.cursors.flush()
    return await rows_of(sync.database, "SELECT epoch, sequence, fetched FROM device_cursors")


async def test_cursor_recorder_keeps_answered_beside_shown(sync: SyncFeature) -> None:
    first = await sync.publish("a")
    await sync.hint()
    assert await fetched_by_ann(sync) == [], "who shows no cursor does not say that it fetches"
    await sync.hint(Cursor("couple"))
    assert await fetched_by_ann(sync) == [(first.epoch, 0, 1)]
    head = await sync.publish("b", "c")
    await sync.hint(first)
    assert await fetched_by_ann(sync) == [(first.epoch, 1, 3)]
    await sync.service.list_changes(APP, "ann", PHONE, Cursor("couple", head.epoch, 1), 1)
    await sync.hint(head)
    assert await fetched_by_ann(sync) == [(first.epoch, 3, 3)]
    sync.cursors.record_fetched(PHONE, [Cursor("couple", head.epoch, 9), Cursor("none", head.epoch, 1)])
    assert await fetched_by_ann(sync) == [(first.epoch, 3, 3)], "there is no such sequence"


async def test_new_epoch_clears_shown_and_fetched_cursors(sync: SyncFeature) -> None:
    head = await sync.publish("a", "b")
    await sync.service.list_changes(APP, "ann", PHONE, head, 10)
    assert await fetched_by_ann(sync) == [(head.epoch, 2, 2)]
    async with sync.database.connection() as conn:
        await conn.execute("UPDATE scopes SET epoch = 'new'")
    sync.cursors.record_shown(PHONE, [Cursor("couple", "new", 1)])
    assert await fetched_by_ann(sync) == [("new", 1, None)]
    async with sync.database.connection() as conn:
        await conn.execute("UPDATE scopes SET epoch = 'newer'")
    await sync.service.list_changes(APP, "ann", PHONE, head, 10)
    assert await fetched_by_ann(sync) == [("newer", 0, 2)]


async def test_cursor_recorder_makes_one_statement_for_repeated_old_cursors(sync: SyncFeature) -> None:
    head = await sync.publish("a")
    await sync.hint(Cursor("couple"))
    await sync.cursors.flush()
    sync.failing.error = DependencyDown("no statement is expected")
    sync.cursors.record_fetched(PHONE, [head])
    await sync.cursors.flush()


async def test_cursor_recorder_ignores_impossible_cursors(sync: SyncFeature) -> None:
    head = await sync.publish("a")
    sync.cursors.record_shown(PHONE, [Cursor("couple", head.epoch, 2)])
    sync.cursors.record_shown(DeviceKey(APP, "ann", "lost"), [head])
    sync.cursors.record_shown(PHONE, [Cursor("couple", "another epoch", 1), Cursor("none", "e", 1)])
    assert await seen_by_ann(sync) == []


async def test_cursor_recorder_retries_after_a_database_outage(sync: SyncFeature) -> None:
    head = await sync.publish("a")
    recording = asyncio.ensure_future(sync.cursors.run())
    sync.failing.error = DependencyDown("the database does not answer")
    sync.cursors.record_shown(PHONE, [head])
    await wait_until(lambda: sync.failing.refused)
    sync.failing.error = None
    await sync.clock.advance(1)
    await until(lambda: value_of(sync.database, "SELECT count(*) = 1 FROM device_cursors"))
    recording.cancel()
    await asyncio.wait([recording])
    assert recording.cancelled()


async def test_head_sweep_finds_changes_without_wake_up(sync: SyncFeature) -> None:
    stream = Subscription(PHONE, all_scopes=False)
    sync.hub.add(stream)
    sync.hub.follow(stream, ["couple", "quiet"])
    await sync.publish("a")
    await sync.publish("q", scope="quiet")
    await sync.head_sweep.sweep(5.0)
    stream.take_dirty()
    sync.publish_quietly()
    await sync.clock.advance(20)
    await sync.publish("b")
    await sync.head_sweep.sweep(5.0)
    assert stream.take_dirty() == {"couple"}
    await sync.clock.advance(16)
    await sync.head_sweep.sweep(5.0)
    assert stream.take_dirty() == set()


async def test_stream_resumes_at_its_cursor(sync: SyncFeature) -> None:
    await sync.publish("a", "b")
    async with stream(sync, Cursor("couple", "", 1)) as reader:
        await wait_until(lambda: reader.changes() == [("b", 2)])
        head = await sync.publish("c")
        await wait_until(lambda: reader.changes() == [("b", 2), ("c", 3)])
        await tell(sync)
        await wait_until(lambda: (head,) in [e.cursors for e in reader.events if isinstance(e, Checkpoint)])
    assert len(sync.hub) == 0
    assert await seen_by_ann(sync) == [(head.epoch, 3)]


async def test_stream_from_now_brings_nothing_old(sync: SyncFeature) -> None:
    await sync.publish("a")
    async with stream(sync) as reader:
        await sync.publish("b")
        await wait_until(lambda: reader.changes() == [("b", 2)])


async def test_stream_with_a_cursor_of_another_epoch_is_reset(sync: SyncFeature) -> None:
    head = await sync.publish("a")
    async with stream(sync, Cursor("couple", "another epoch", 1)) as reader:
        assert [event.head for event in reader.events if isinstance(event, Reset)] == [head]
        await sync.publish("b")
        await wait_until(lambda: reader.changes() == [("b", 2)])


async def test_stream_of_a_foreign_scope_is_refused(sync: SyncFeature) -> None:
    await sync.publish("x", scope="private")
    async with stream(sync, Cursor("private")) as reader:
        assert isinstance(reader.error, AccessDenied)
    assert len(sync.hub) == 0


async def test_stream_ends_with_token_expiry_and_drain(sync: SyncFeature) -> None:
    async with stream(sync, expires_at=sync.clock.now() + timedelta(seconds=10)) as reader:
        await sync.clock.advance(10)
        sync.hub.invalidate_all()
        await wait_until(lambda: reader.ended)
        assert isinstance(reader.error, TokenExpired)
    async with stream(sync) as reader:
        sync.hub.drain()
        await wait_until(lambda: reader.ended)
        assert isinstance(reader.events[-1], Drain)
        assert isinstance(reader.events[-2], Checkpoint)


async def test_reconnect_after_a_drain_is_spread(sync: SyncFeature) -> None:
    async with AsyncExitStack() as stack:
        readers = [await stack.enter_async_context(stream(sync)) for _ in range(40)]
        sync.hub.drain()
        await wait_until(lambda: all(reader.ended for reader in readers))
    delays = sorted(event.reconnect_delay_s for reader in readers if isinstance(event := reader.events[-1], Drain))
    assert len(delays) == len(readers)
    assert delays[-1] >= len(readers) / COME_BACK_PER_S
    most_at_once = max(sum(at <= other < at + 2.0 for other in delays) for at in delays)
    assert most_at_once <= 4.0 * COME_BACK_PER_S


@pytest.mark.parametrize("error", [DependencyDown("the database does not answer"), TooManyWait(0.5)])
async def test_stream_survives_a_database_that_is_away_or_overloaded(sync: SyncFeature, error: SyncbeatError) -> None:
    sync = sync.under(streams=StreamRule(retry_s=0.01))
    await sync.publish("x", scope="chat")
    await sync.clock.advance(60)  # longer ago than a transaction can last: not news to whoever joins
    async with stream(sync) as reader:
        sync.failing.error = error
        await add_members(sync.database, "chat", "ann")
        sync.hub.members_changed(APP, "ann")
        await sync.publish("a")
        await wait_until(lambda: sync.failing.refused > 2)
        sync.failing.error = None
        await wait_until(lambda: reader.changes() == [("a", 1)])
        await wait_until(lambda: (APP, "chat") in sync.hub.followed_scopes(), what="it knows the scope that was joined")
        await sync.publish("y", scope="chat")
        await wait_until(lambda: ("y", 2) in reader.changes())
        assert not reader.ended


async def test_streams_refused_by_one_error_are_each_told_a_time_of_their_own(sync: SyncFeature) -> None:
    sync.failing.error = shared = DependencyDown("the database does not answer", retry_after_s=1.0)
    told: list[float] = []
    for _ in range(20):
        with pytest.raises(DependencyDown) as raised:
            await anext(sync.streams.watch(WatchRequest(PHONE, "ann", (), Activity(), 30.0, None, let_in)))
        told.append(raised.value.retry_after_s)
    assert shared.retry_after_s == 1.0
    assert len(set(told)) > 1
    assert max(told) < 120


async def test_stream_stops_for_a_removed_member(sync: SyncFeature) -> None:
    async with stream(sync) as reader:
        await make_directory(sync.database).remove_members(APP, "couple", ["ann"])
        await sync.publish("secret")
        await until(lambda: settled_without(sync, "couple"))
        await settle()
        assert reader.changes() == []


async def settled_without(sync: SyncFeature, scope: str) -> bool:
    """Return whether nobody follows the scope."""
    return (APP, scope) not in sync.hub.followed_scopes()
