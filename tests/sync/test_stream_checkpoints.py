"""Tests when a stream tells where it is: within 5 s of news, and not after every change."""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import partial
from itertools import pairwise

import pytest

from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.sync.model import Checkpoint, Cursor, Drain, Hint, Priority
from tests.support.build import APP, SyncFeature, make_directory
from tests.support.fake_clock import FakeClock, settle, wait_until
from tests.support.seed import add_members, couple, value_of
from tests.support.sync_streams import Reader, stream, tell

pytestmark = [pytest.mark.store, pytest.mark.usefixtures("database", "clock")]


@pytest.fixture
async def sync(database: Database, clock: FakeClock) -> SyncFeature:
    await couple(database)
    # Drawn as late as may be: what is told before that is told too early.
    return SyncFeature(database, clock, draw=lambda low, high: high)


def checkpoints(reader: Reader) -> list[tuple[Cursor, ...]]:
    return [event.cursors for event in reader.events if isinstance(event, Checkpoint)]


def has_changes(reader: Reader, count: int) -> bool:
    return len(reader.changes()) == count


def has_checkpoints(reader: Reader, count: int) -> bool:
    return len(checkpoints(reader)) == count


def look(sync: SyncFeature) -> None:
    """Wake the streams, which finds out what is due and reads nothing."""
    for subscription in sync.hub._by_scope[APP, "couple"]:
        subscription.wake()


async def test_checkpoint_of_many_changes_is_one_and_tells_all_of_them(sync: SyncFeature) -> None:
    async with stream(sync) as reader:
        for number in range(9):
            await sync.publish(f"k{number}")
            await wait_until(partial(has_changes, reader, number + 1))
        head = await sync.publish("last")
        await wait_until(partial(has_changes, reader, 10))
        assert len(checkpoints(reader)) == 1, "that of its start"
        await sync.clock.advance(4.9)
        look(sync)
        await settle()
        assert len(checkpoints(reader)) == 1
        await sync.clock.advance(0.1)
        look(sync)
        await wait_until(lambda: len(checkpoints(reader)) == 2)
        assert checkpoints(reader)[-1] == (head,)


async def test_changes_sent_are_recorded_as_seen_at_once(sync: SyncFeature) -> None:
    async with stream(sync) as reader:
        await sync.publish("a")
        await wait_until(lambda: reader.changes() == [("a", 1)])
        await wait_until(lambda: len(sync.cursors._shown) == 1, what="before any checkpoint")
        assert len(checkpoints(reader)) == 1
        await sync.cursors.flush()
    assert await value_of(sync.database, "SELECT sequence FROM device_cursors") == 1


async def test_scopes_that_moved_alone_are_recorded_as_seen(sync: SyncFeature) -> None:
    await add_members(sync.database, "chat", "ann")
    await sync.publish("x", scope="chat")
    async with stream(sync, Cursor("couple", "", 0), Cursor("chat", "", 1)) as reader:
        await wait_until(lambda: len(sync.cursors._shown) == 2, what="what it named")
        await sync.cursors.flush()
        await sync.publish("a")
        await wait_until(lambda: reader.changes() == [("a", 1)])
        await wait_until(lambda: [scope for _, scope in sync.cursors._shown] == ["couple"])


async def test_checkpoint_comes_at_each_heartbeat_without_news(sync: SyncFeature) -> None:
    async with stream(sync, heartbeat_s=30.0) as reader:
        for beats in (2, 3):
            await sync.clock.advance(29.9)
            look(sync)
            await settle()
            assert len(checkpoints(reader)) == beats - 1
            await sync.clock.advance(0.1)
            look(sync)
            await wait_until(partial(has_checkpoints, reader, beats))


async def test_drain_follows_a_checkpoint_of_all_that_was_sent(sync: SyncFeature) -> None:
    async with stream(sync) as reader:
        head = await sync.publish("a")
        await wait_until(lambda: reader.changes() == [("a", 1)])
        sync.hub.drain()
        await wait_until(lambda: reader.ended)
    last, drain = reader.events[-2:]
    assert isinstance(last, Checkpoint)
    assert isinstance(drain, Drain)
    assert last.cursors == (head,)


async def test_checkpoint_names_a_joined_or_left_scope_within_five_seconds(sync: SyncFeature) -> None:
    await sync.publish("x", scope="chat")
    await sync.clock.advance(60)  # longer ago than a transaction can last: no news to whoever joins
    async with stream(sync) as reader:
        await add_members(sync.database, "chat", "ann")
        sync.hub.members_changed(APP, "ann")
        await wait_until(lambda: (APP, "chat") in sync.hub.followed_scopes())
        await tell(sync)
        await wait_until(lambda: {cursor.scope for cursor in checkpoints(reader)[-1]} == {"couple", "chat"})
        await make_directory(sync.database).remove_members(APP, "couple", ["ann"])
        sync.hub.members_changed(APP, "ann")
        await wait_until(lambda: (APP, "couple") not in sync.hub.followed_scopes(), what="at once")
        await tell(sync)
        await wait_until(lambda: [cursor.scope for cursor in checkpoints(reader)[-1]] == ["chat"])


async def test_hint_moved_without_news_is_sent_within_five_seconds(sync: SyncFeature) -> None:
    async with stream(sync) as reader:
        assert reader.count(Hint) == 1
        await sync.service.boost(APP, "couple", Priority.IMMEDIATE, 600.0)
        await settle()
        await tell(sync)
        await wait_until(lambda: reader.count(Hint) == 2)
        assert len(checkpoints(reader)) == 1


async def test_checkpoints_of_streams_of_one_scope_have_jitter(sync: SyncFeature) -> None:
    async with AsyncExitStack() as stack:
        readers = [await stack.enter_async_context(stream(sync)) for _ in range(20)]
        await sync.clock.advance(20)  # long after they told last
        shares = iter([number / 19 for number in range(20)])
        sync.draw = lambda low, high: low + next(shares) * (high - low)
        await sync.publish("a")
        await wait_until(lambda: all(reader.changes() for reader in readers))
        told = [0]
        for _ in range(5):
            await sync.clock.advance(1)
            look(sync)
            await settle()
            told.append(sum(len(checkpoints(reader)) == 2 for reader in readers))
    assert told[-1] == len(readers)
    assert max(later - earlier for earlier, later in pairwise(told)) <= 8, told
