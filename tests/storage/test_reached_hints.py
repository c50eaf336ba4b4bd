"""Hints know how far pushes reach: a device that answers them polls rarely, until they break or it lists."""

from __future__ import annotations

import hashlib

import pytest

from syncbeat_server.events.publish import Publish, Publisher, Trigger
from syncbeat_server.push.model import Content
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.sync.feed.reader import FeedReader
from syncbeat_server.sync.hints.builder import HintBuilder
from syncbeat_server.sync.hints.cursor_recorder import CursorRecorder
from syncbeat_server.sync.hints.recorders import Recorders
from syncbeat_server.sync.hints.view_cache import ViewCache
from syncbeat_server.sync.hints.view_reader import ViewReader
from syncbeat_server.sync.hints.writer_presence import WriterPresence
from syncbeat_server.sync.model import Activity, ActivityState, Cursor, DeviceKey, Hint, NewChange, Poll
from syncbeat_server.sync.policy.arrival_book import ArrivalBook
from syncbeat_server.sync.policy.load_leveling import LoadLeveler
from syncbeat_server.sync.service import SyncService
from syncbeat_server.sync.tuning.price_updates import HintTuner, TuningGoal
from tests.fakes import FakeClock
from tests.storage.stage import APP, Notifier, couple

PHONE = DeviceKey(APP, "ann", "phone")
LOOKING = Activity()


class House:
    """A couple whose backend wakes devices with each change, and a phone of it that asks."""

    def __init__(self, database: Database, clock: FakeClock) -> None:
        self.database = database
        self.tuner = HintTuner(database, lambda: {APP: TuningGoal()}, lambda: (), clock)
        self.streaming = False
        views = ViewReader(database, ViewCache(clock, lambda: False, 100))
        recorders = Recorders(CursorRecorder(database, clock), self.tuner.recorder)
        pacing = LoadLeveler(ArrivalBook(clock.now().timestamp()), lambda: 0.5)
        tuning = self.tuner.tuning
        hints = HintBuilder(views, recorders, pacing, tuning, lambda device: self.streaming, clock)
        writers = WriterPresence(database, clock, lambda app_id, scope: None)
        reader = FeedReader(database)
        self.service = SyncService(database, reader, hints, writers, Notifier())
        self.publisher = Publisher(database, clock, tuning, Notifier(), self.tuner.recorder)

    async def publish(self) -> None:
        wake = Trigger("news", "", "", Content(), 60.0)
        digest = hashlib.sha256(b"").digest()
        change = NewChange("couple", "k", "{}")
        await self.publisher.publish(Publish(APP, "service:test", (change,), wake, None, "", digest))

    async def hint(self, activity: Activity = LOOKING) -> Hint:
        poll = Poll(PHONE, activity=activity, explain=True)
        return self.service.try_hint(poll) or await self.service.hint(poll, is_user=True)

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


async def test_a_device_that_answers_pushes_polls_rarely_until_they_break(house: House, clock: FakeClock) -> None:
    unproven = await house.hint()
    assert "polls must find 9" in unproven.explanation  # nine of ten: nobody knows yet whether its token works
    await house.run(ANSWERED)
    reached = await house.hint()
    assert reached.poll_interval_s > 5 * unproven.poll_interval_s
    assert "pushes bring the rest" in reached.explanation
    await house.run(BROKEN)
    await house.tuner.read()
    broken = await house.hint()
    assert broken.poll_interval_s <= unproven.poll_interval_s
    assert "no pushes bring any" in broken.explanation
    await clock.advance(61)
    await house.tuner.read()
    assert (await house.hint()).poll_interval_s > 5 * broken.poll_interval_s


async def test_misses_of_all_devices_of_an_app_shorten_the_intervals_of_each(house: House) -> None:
    await house.run(ANSWERED)
    before = (await house.hint()).poll_interval_s
    await house.run("INSERT INTO app_reach (app_id, all_answered, all_missed) VALUES ('default', 800, 200)")
    await house.tuner.read()
    assert (await house.hint()).poll_interval_s < before / 2


async def test_an_iphone_in_the_background_misses_what_one_push_misses(house: House) -> None:
    await house.run(ANSWERED)
    columns = "(app_id, all_answered, all_missed, first_answered, first_missed)"
    await house.run(f"INSERT INTO app_reach {columns} VALUES ('default', 1000, 0, 800, 200)")
    await house.tuner.read()
    away = Activity(ActivityState.BACKGROUND)
    android = await house.hint(away)
    await house.run("UPDATE devices SET platform = 'IOS'")
    iphone = await house.hint(away)
    assert iphone.poll_interval_s < android.poll_interval_s / 2
    assert "polls must find 19" in iphone.explanation  # a fifth, and the doubt of so few tries


async def test_an_iphone_counts_as_on_the_screen_for_as_long_as_it_is_woken_again(
    house: House, clock: FakeClock
) -> None:
    await house.run(ANSWERED + ", platform = 'IOS'")
    columns = "(app_id, all_answered, all_missed, first_answered, first_missed)"
    await house.run(f"INSERT INTO app_reach {columns} VALUES ('default', 1000, 0, 800, 200)")
    await house.tuner.read()
    never_reported = await house.hint()
    assert "polls must find 19" in never_reported.explanation  # a fifth: each push that is missed
    await house.service.report_activity(PHONE, LOOKING, is_user=True)
    on_screen = await house.hint()
    assert on_screen.poll_interval_s > 2 * never_reported.poll_interval_s
    await clock.advance(601)
    assert "polls must find 19" in (await house.hint()).explanation


async def test_a_device_with_an_open_stream_polls_for_safety_only(house: House) -> None:
    polling = (await house.hint()).poll_interval_s
    house.streaming = True
    streaming = await house.hint()
    assert streaming.poll_interval_s > 5 * polling
    assert "a stream is open" in streaming.explanation


async def test_a_list_answers_the_hint_of_the_whole_device(house: House) -> None:
    await house.run(ANSWERED)
    polled = await house.hint()
    _, listed = await house.service.list_changes(APP, "ann", PHONE, Cursor("couple"), 10)
    assert listed.poll_interval_s == pytest.approx(polled.poll_interval_s, rel=0.1)  # it is not moved by pacing
    _, by_backend = await house.service.list_changes(APP, "ann", None, Cursor("couple"), 10)
    assert by_backend.poll_interval_s < polled.poll_interval_s
