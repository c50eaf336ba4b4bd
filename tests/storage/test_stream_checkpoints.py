"""When a stream tells where it is: within 5 s of news, and not after every change."""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import partial
from itertools import pairwise

import pytest

from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.sync.model import Checkpoint, Cursor, Drain, Hint, Priority
from syncbeat_server.sync.streams import checkpoint_schedule
from tests.fakes import FakeClock, settle, wait_until
from tests.storage.house import House, Reader, stream, tell
from tests.storage.stage import APP, add_members, couple, directory, value_of

pytestmark = pytest.mark.usefixtures("database", "clock")


@pytest.fixture
async def house(database: Database, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> House:
    # Drawn as late as may be: what is told before that is told too early.
    monkeypatch.setattr(checkpoint_schedule, "jitter", lambda low, high: high)
    await couple(database)
    return House(database, clock)


def checkpoints(reader: Reader) -> list[tuple[Cursor, ...]]:
    return [event.cursors for event in reader.events if isinstance(event, Checkpoint)]


def has_changes(reader: Reader, count: int) -> bool:
    return len(reader.changes()) == count


def has_checkpoints(reader: Reader, count: int) -> bool:
    return len(checkpoints(reader)) == count


def look(house: House) -> None:
    """Wake the streams, which finds out what is due and reads nothing."""
    for subscription in house.hub._by_scope[APP, "couple"]:
        subscription.wake()


async def test_checkpoint_of_many_changes_is_one_and_tells_all_of_them(house: House) -> None:
    async with stream(house) as reader:
        for number in range(9):
            await house.publish(f"k{number}")
            await wait_until(partial(has_changes, reader, number + 1))
        head = await house.publish("last")
        await wait_until(partial(has_changes, reader, 10))
        assert len(checkpoints(reader)) == 1, "that of its start"
        await house.clock.advance(4.9)
        look(house)
        await settle()
        assert len(checkpoints(reader)) == 1
        await house.clock.advance(0.1)
        look(house)
        await wait_until(lambda: len(checkpoints(reader)) == 2)
        assert checkpoints(reader)[-1] == (head,)


async def test_changes_are_noted_as_seen_at_once(house: House) -> None:
    async with stream(house) as reader:
        await house.publish("a")
        await wait_until(lambda: reader.changes() == [("a", 1)])
        await wait_until(lambda: len(house.cursors._shown) == 1, what="before any checkpoint")
        assert len(checkpoints(reader)) == 1
        await house.cursors.flush()
    assert await value_of(house.database, "SELECT sequence FROM device_cursors") == 1


async def test_only_scopes_that_moved_are_noted_as_seen(house: House) -> None:
    await add_members(house.database, "chat", "ann")
    await house.publish("x", scope="chat")
    async with stream(house, Cursor("couple", "", 0), Cursor("chat", "", 1)) as reader:
        await wait_until(lambda: len(house.cursors._shown) == 2, what="what it named")
        await house.cursors.flush()
        await house.publish("a")
        await wait_until(lambda: reader.changes() == [("a", 1)])
        await wait_until(lambda: [scope for _, scope in house.cursors._shown] == ["couple"])


async def test_checkpoint_comes_at_each_heartbeat_without_news(house: House) -> None:
    async with stream(house, heartbeat_s=30.0) as reader:
        for beats in (2, 3):
            await house.clock.advance(29.9)
            look(house)
            await settle()
            assert len(checkpoints(reader)) == beats - 1
            await house.clock.advance(0.1)
            look(house)
            await wait_until(partial(has_checkpoints, reader, beats))


async def test_drain_comes_right_after_a_checkpoint_of_all_that_was_sent(house: House) -> None:
    async with stream(house) as reader:
        head = await house.publish("a")
        await wait_until(lambda: reader.changes() == [("a", 1)])
        house.hub.drain()
        await wait_until(lambda: reader.ended)
    last, drain = reader.events[-2:]
    assert isinstance(last, Checkpoint)
    assert isinstance(drain, Drain)
    assert last.cursors == (head,)


async def test_scope_joined_or_left_is_in_the_next_checkpoint_within_five_seconds(house: House) -> None:
    await house.publish("x", scope="chat")
    await house.clock.advance(60)  # longer ago than a transaction can last: no news to whoever joins
    async with stream(house) as reader:
        await add_members(house.database, "chat", "ann")
        house.hub.members_changed(APP, "ann")
        await wait_until(lambda: (APP, "chat") in house.hub.followed_scopes())
        await tell(house)
        await wait_until(lambda: {cursor.scope for cursor in checkpoints(reader)[-1]} == {"couple", "chat"})
        await directory(house.database).remove_members(APP, "couple", ["ann"])
        house.hub.members_changed(APP, "ann")
        await wait_until(lambda: (APP, "couple") not in house.hub.followed_scopes(), what="at once")
        await tell(house)
        await wait_until(lambda: [cursor.scope for cursor in checkpoints(reader)[-1]] == ["chat"])


async def test_hint_that_moved_without_news_is_told_within_five_seconds_and_no_checkpoint(house: House) -> None:
    async with stream(house) as reader:
        assert reader.count(Hint) == 1
        await house.service.boost(APP, "couple", Priority.IMMEDIATE, 600.0)
        await settle()
        await tell(house)
        await wait_until(lambda: reader.count(Hint) == 2)
        assert len(checkpoints(reader)) == 1


async def test_streams_of_one_scope_do_not_all_tell_at_once(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    async with AsyncExitStack() as stack:
        readers = [await stack.enter_async_context(stream(house)) for _ in range(20)]
        await house.clock.advance(20)  # long after they told last
        shares = iter([number / 19 for number in range(20)])
        monkeypatch.setattr(checkpoint_schedule, "jitter", lambda low, high: low + next(shares) * (high - low))
        await house.publish("a")
        await wait_until(lambda: all(reader.changes() for reader in readers))
        told = [0]
        for _ in range(5):
            await house.clock.advance(1)
            look(house)
            await settle()
            told.append(sum(len(checkpoints(reader)) == 2 for reader in readers))
    assert told[-1] == len(readers)
    assert max(later - earlier for earlier, later in pairwise(told)) <= 8, told
