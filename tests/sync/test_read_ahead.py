"""News of many idle streams is read once for all of them, and nobody gets what is not theirs, or misses any."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack

import pytest

from syncbeat_server.errors import DependencyDown
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.sync.feed.fair_sharing import Pages
from syncbeat_server.sync.model import Change, ChangesSent, Cursor, DeviceKey
from syncbeat_server.sync.streams.hub import Hub
from syncbeat_server.sync.streams.subscription import Subscription
from tests.support.build import APP, SyncFeature
from tests.support.fake_clock import FakeClock, settle, wait_until
from tests.support.seed import couple
from tests.support.sync_streams import Reader, stream

pytestmark = [pytest.mark.store, pytest.mark.usefixtures("database", "clock")]

CROWD = 20


class CountedReads:
    """Counts the reads for many streams, and can hold them back."""

    def __init__(self, sync: SyncFeature, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked = 0
        self.go_on = asyncio.Event()
        self.go_on.set()
        self._real = sync.reader.shared_pages
        monkeypatch.setattr(sync.reader, "shared_pages", self._counted)

    async def _counted(
        self, cursors: Sequence[tuple[str, Cursor]], readers: Sequence[tuple[str, str, str]], limit: int
    ) -> tuple[Pages, list[bool]]:
        self.asked += 1
        answer = await self._real(cursors, readers, limit)
        await self.go_on.wait()
        return answer


@pytest.fixture
async def sync(database: Database, clock: FakeClock) -> SyncFeature:
    await couple(database)
    return SyncFeature(database, clock)


@pytest.fixture
def reads(sync: SyncFeature, monkeypatch: pytest.MonkeyPatch) -> CountedReads:
    return CountedReads(sync, monkeypatch)


@pytest.fixture
async def crowd(sync: SyncFeature, reads: CountedReads) -> AsyncIterator[list[Reader]]:
    assert reads.asked == 0
    async with AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(stream(sync)) for _ in range(CROWD)]
        await settle()
        yield opened


def changes_of(reader: Reader) -> list[Change]:
    return [change for event in reader.events if isinstance(event, ChangesSent) for change in event.changes]


async def all_have(crowd: Sequence[Reader], count: int) -> None:
    await wait_until(lambda: all(len(reader.changes()) == count for reader in crowd))


async def test_read_ahead_shares_one_page(sync: SyncFeature, reads: CountedReads, crowd: list[Reader]) -> None:
    for number in range(1, 4):
        await sync.publish("a")
        await all_have(crowd, number)
    assert reads.asked == 3
    assert all(reader.changes() == [("a", 1), ("a", 2), ("a", 3)] for reader in crowd)
    first, *others = (changes_of(reader) for reader in crowd)
    assert all(mine is its for other in others for mine, its in zip(first, other, strict=True))


async def test_read_ahead_misses_no_change_during_the_read(
    sync: SyncFeature, reads: CountedReads, crowd: list[Reader]
) -> None:
    reads.go_on.clear()
    await sync.publish("a")
    await wait_until(lambda: reads.asked == 1)
    await sync.publish("b", "c")
    reads.go_on.set()
    await wait_until(lambda: all(reader.changes() == [("a", 1), ("b", 2), ("c", 3)] for reader in crowd))


async def test_read_ahead_gives_nothing_to_those_who_left(
    sync: SyncFeature, crowd: list[Reader], database: Database
) -> None:
    async with database.connection() as conn:
        await conn.execute("DELETE FROM scope_members WHERE user_id = 'ann'")
    await sync.publish("a")
    await wait_until(lambda: not sync.hub.followed_scopes(), what="all of them have noticed")
    assert all(reader.changes() == [] for reader in crowd)


async def test_read_ahead_outlives_an_outage_of_the_database(
    sync: SyncFeature, reads: CountedReads, crowd: list[Reader]
) -> None:
    sync.publish_quietly()
    await sync.publish("a")
    sync.failing.error = DependencyDown("the database does not answer")
    sync.hub.scope_changed(APP, "couple")
    await wait_until(lambda: sync.failing.refused > 1, what="they have tried by themselves")
    assert reads.asked == 1
    sync.failing.error = None
    await wait_until(lambda: all(reader.changes() == [("a", 1)] for reader in crowd))


async def test_revocation_is_not_held_up_by_a_read_ahead() -> None:
    hub, go_on = Hub(), asyncio.Event()
    reading: list[Subscription] = []

    async def read_ahead(subscriptions: Sequence[Subscription]) -> bool:
        reading.extend(subscriptions)
        return await go_on.wait()

    hub.read_ahead = read_ahead
    crowd = [Subscription(DeviceKey(APP, f"user-{number}", "phone"), all_scopes=False) for number in range(CROWD)]
    waits = []
    for subscription in crowd:
        hub.add(subscription)
        hub.follow(subscription, ["s"])
        waits.append(asyncio.ensure_future(subscription.wait(60)))
    await settle()
    hub.scope_changed(APP, "s")
    await settle()
    assert len(reading) == CROWD
    assert not any(wait.done() for wait in waits)
    hub.callers_changed(APP, "user-7")
    await settle()
    assert [wait.done() for wait in waits] == [number == 7 for number in range(CROWD)]
    go_on.set()
    await asyncio.wait_for(asyncio.gather(*waits), 20)
