"""Hints know how far pushes reach: a device that answers them polls rarely, until they break or it lists."""

from __future__ import annotations

import hashlib

import pytest

from syncbeat_server.events.publish import Publish, Publisher, Trigger
from syncbeat_server.push.model import Content
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.sync.feed.reader import FeedReader
from syncbeat_server.sync.hints.builder import Hints
from syncbeat_server.sync.hints.cursor_recorder import SeenRecorder
from syncbeat_server.sync.hints.view_cache import Views
from syncbeat_server.sync.model import Activity, ActivityState, Cursor, DeviceKey, Hint, NewChange, Poll
from syncbeat_server.sync.policy.load_leveling import Book, Pacing
from syncbeat_server.sync.service import SyncService
from syncbeat_server.sync.tuning.price_updates import Aim, Learning
from tests.support.fake_clock import FakeClock
from tests.support.seed import APP, couple

pytestmark = pytest.mark.store

PHONE = DeviceKey(APP, "ann", "phone")
LOOKING = Activity()


class House:
    """A couple whose backend wakes devices with each change, and a phone of it that asks."""

    def __init__(self, database: Database, clock: FakeClock) -> None:
        self.database = database
        self.learning = Learning(database, lambda: {APP: Aim()}, lambda: (), clock)
        self.streaming = False
        views = Views(database, clock, lambda: False, 100)
        seen = SeenRecorder(database, clock)
        pacing = Pacing(Book(clock.now().timestamp()), lambda: 0.5)
        tuning = self.learning.tuning
        hints = Hints(views, seen, self.learning.recorder, pacing, tuning, lambda device: self.streaming, clock)
        reader = FeedReader(database)
        self.service = SyncService(database, reader, hints, lambda app_id, scope: None, lambda device, activity: None)
        self.publisher = Publisher(database, clock, tuning, lambda app_id, scope: None, lambda: None)

    async def publish(self) -> None:
        wake = Trigger("news", "", "", Content(), 60.0)
        digest = hashlib.sha256(b"").digest()
        change = NewChange("couple", "k", "{}")
        await self.publisher.publish(Publish(APP, "service:test", (change,), wake, None, "", digest))

    async def hint(self, activity: Activity = LOOKING) -> Hint:
        poll = Poll(PHONE, activity=activity, explain=True)
        return self.service.hint_at_once(poll) or await self.service.hint(poll, is_user=True)

    async def run(self, statement: str) -> None:
        async with self.database.connection() as conn:
            await conn.execute(statement)


@pytest.fixture
async def house(database: Database, clock: FakeClock) -> House:
    await couple(database)
    made = House(database, clock)
    for _ in range(3):
        await made.publish()
    return made


ANSWERED = "UPDATE devices SET reach_answered = 20, reach_at = syncbeat_now()"
BROKEN = "INSERT INTO app_reach (app_id, broken_until) VALUES ('default', syncbeat_now() + interval '1 minute')"


async def test_push_reach_lengthens_intervals_until_pushes_break(house: House, clock: FakeClock) -> None:
    unproven = await house.hint()
    assert "polls must find 9" in unproven.explanation  # nine of ten: nobody knows yet whether its token works
    await house.run(ANSWERED)
    reached = await house.hint()
    assert reached.poll_interval_s > 5 * unproven.poll_interval_s
    assert "pushes bring the rest" in reached.explanation
    await house.run(BROKEN)
    await house.learning.read()
    broken = await house.hint()
    assert broken.poll_interval_s <= unproven.poll_interval_s
    assert "no pushes bring any" in broken.explanation
    await clock.advance(61)
    await house.learning.read()
    assert (await house.hint()).poll_interval_s > 5 * broken.poll_interval_s


async def test_push_reach_misses_of_an_app_shorten_all_intervals(house: House) -> None:
    await house.run(ANSWERED)
    before = (await house.hint()).poll_interval_s
    await house.run("INSERT INTO app_reach (app_id, all_answered, all_missed) VALUES ('default', 800, 200)")
    await house.learning.read()
    assert (await house.hint()).poll_interval_s < before / 2


async def test_push_reach_of_ios_background_is_that_of_first_pushes(house: House) -> None:
    await house.run(ANSWERED)
    columns = "(app_id, all_answered, all_missed, first_answered, first_missed)"
    await house.run(f"INSERT INTO app_reach {columns} VALUES ('default', 1000, 0, 800, 200)")
    await house.learning.read()
    away = Activity(ActivityState.BACKGROUND)
    android = await house.hint(away)
    await house.run("UPDATE devices SET platform = 'IOS'")
    iphone = await house.hint(away)
    assert iphone.poll_interval_s < android.poll_interval_s / 2
    assert "polls must find 19" in iphone.explanation  # a fifth, and the doubt of so few tries


async def test_push_reach_of_ios_foreground_counts_resends(house: House, clock: FakeClock) -> None:
    await house.run(ANSWERED + ", platform = 'IOS'")
    columns = "(app_id, all_answered, all_missed, first_answered, first_missed)"
    await house.run(f"INSERT INTO app_reach {columns} VALUES ('default', 1000, 0, 800, 200)")
    await house.learning.read()
    never_reported = await house.hint()
    assert "polls must find 19" in never_reported.explanation  # a fifth: each push that is missed
    await house.service.report_activity(PHONE, LOOKING, is_user=True)
    on_screen = await house.hint()
    assert on_screen.poll_interval_s > 2 * never_reported.poll_interval_s
    await clock.advance(601)
    assert "polls must find 19" in (await house.hint()).explanation


async def test_stream_open_makes_polls_rare(house: House) -> None:
    polling = (await house.hint()).poll_interval_s
    house.streaming = True
    streaming = await house.hint()
    assert streaming.poll_interval_s > 5 * polling
    assert "a stream is open" in streaming.explanation


async def test_list_changes_returns_the_hint_of_the_device(house: House) -> None:
    await house.run(ANSWERED)
    polled = await house.hint()
    _, listed = await house.service.list_changes(APP, "ann", PHONE, Cursor("couple"), 10)
    assert listed.poll_interval_s == pytest.approx(polled.poll_interval_s, rel=0.1)  # it is not moved by pacing
    _, by_backend = await house.service.list_changes(APP, "ann", None, Cursor("couple"), 10)
    assert by_backend.poll_interval_s < polled.poll_interval_s
