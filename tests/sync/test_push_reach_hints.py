"""Hints know how far pushes reach: a device that answers them polls rarely, until they break or it lists."""

from __future__ import annotations

import hashlib

import pytest

from syncbeat_server.events.publish import Publish
from syncbeat_server.events.trigger import Trigger
from syncbeat_server.push.model import Content
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.sync.model import Activity, ActivityState, Cursor, Hint, NewChange
from syncbeat_server.sync.streams.subscription import Subscription
from syncbeat_server.sync.tuning.price_updates import HintTuner, TuningGoal
from tests.support.build import APP, PHONE, SyncFeature
from tests.support.fake_clock import FakeClock
from tests.support.seed import couple

pytestmark = pytest.mark.store

LOOKING = Activity()


async def publish(sync: SyncFeature) -> None:
    """Publish a change with a trigger: the couple's devices are woken."""
    wake = Trigger("news", "", "", Content(), 60.0)
    digest = hashlib.sha256(b"").digest()
    change = NewChange("couple", "k", "{}")
    await sync.publisher.publish(Publish(APP, "service:test", (change,), wake, None, "", digest))


async def explained(sync: SyncFeature, activity: Activity = LOOKING) -> Hint:
    """Poll for a hint that is explained."""
    return await sync.hint(activity=activity, explain=True)


async def run(sync: SyncFeature, statement: str) -> None:
    async with sync.database.connection() as conn:
        await conn.execute(statement)


@pytest.fixture
def tuner(database: Database, clock: FakeClock) -> HintTuner:
    return HintTuner(database, lambda: {APP: TuningGoal()}, lambda: (), clock)


@pytest.fixture
async def sync(database: Database, clock: FakeClock, tuner: HintTuner) -> SyncFeature:
    """A couple whose backend wakes devices with each change, and a phone of it that asks."""
    await couple(database)
    made = SyncFeature(database, clock, tuner=tuner)
    for _ in range(3):
        await publish(made)
    return made


ANSWERED = "UPDATE devices SET reach_answered = 20, reach_at = syncbeat_now()"
BROKEN = "INSERT INTO app_reach (app_id, broken_until) VALUES ('default', syncbeat_now() + interval '1 minute')"


async def test_push_reach_lengthens_intervals_until_pushes_break(
    sync: SyncFeature, tuner: HintTuner, clock: FakeClock
) -> None:
    unproven = await explained(sync)
    assert "polls must find 9" in unproven.explanation  # nine of ten: nobody knows yet whether its token works
    await run(sync, ANSWERED)
    reached = await explained(sync)
    assert reached.poll_interval_s > 5 * unproven.poll_interval_s
    assert "pushes bring the rest" in reached.explanation
    await run(sync, BROKEN)
    await tuner.read()
    broken = await explained(sync)
    assert broken.poll_interval_s <= unproven.poll_interval_s
    assert "no pushes bring any" in broken.explanation
    await clock.advance(61)
    await tuner.read()
    assert (await explained(sync)).poll_interval_s > 5 * broken.poll_interval_s


async def test_push_reach_misses_of_an_app_shorten_all_intervals(sync: SyncFeature, tuner: HintTuner) -> None:
    await run(sync, ANSWERED)
    before = (await explained(sync)).poll_interval_s
    await run(sync, "INSERT INTO app_reach (app_id, all_answered, all_missed) VALUES ('default', 800, 200)")
    await tuner.read()
    assert (await explained(sync)).poll_interval_s < before / 2


async def test_push_reach_of_ios_background_is_that_of_first_pushes(sync: SyncFeature, tuner: HintTuner) -> None:
    await run(sync, ANSWERED)
    columns = "(app_id, all_answered, all_missed, first_answered, first_missed)"
    await run(sync, f"INSERT INTO app_reach {columns} VALUES ('default', 1000, 0, 800, 200)")
    await tuner.read()
    away = Activity(ActivityState.BACKGROUND)
    android = await explained(sync, away)
    await run(sync, "UPDATE devices SET platform = 'IOS'")
    iphone = await explained(sync, away)
    assert iphone.poll_interval_s < android.poll_interval_s / 2
    assert "polls must find 19" in iphone.explanation  # a fifth, and the doubt of so few tries


async def test_push_reach_of_ios_foreground_counts_resends(
    sync: SyncFeature, tuner: HintTuner, clock: FakeClock
) -> None:
    await run(sync, ANSWERED + ", platform = 'IOS'")
    columns = "(app_id, all_answered, all_missed, first_answered, first_missed)"
    await run(sync, f"INSERT INTO app_reach {columns} VALUES ('default', 1000, 0, 800, 200)")
    await tuner.read()
    never_reported = await explained(sync)
    assert "polls must find 19" in never_reported.explanation  # a fifth: each push that is missed
    await sync.service.report_activity(PHONE, LOOKING, is_user=True)
    on_screen = await explained(sync)
    assert on_screen.poll_interval_s > 2 * never_reported.poll_interval_s
    await clock.advance(601)
    assert "polls must find 19" in (await explained(sync)).explanation


async def test_stream_open_makes_polls_rare(sync: SyncFeature) -> None:
    polling = (await explained(sync)).poll_interval_s
    sync.hub.add(Subscription(PHONE, all_scopes=False))
    streaming = await explained(sync)
    assert streaming.poll_interval_s > 5 * polling
    assert "a stream is open" in streaming.explanation


async def test_list_changes_returns_the_hint_of_the_device(sync: SyncFeature) -> None:
    await run(sync, ANSWERED)
    polled = await explained(sync)
    _, listed = await sync.service.list_changes(APP, "ann", PHONE, Cursor("couple"), 10)
    assert listed.poll_interval_s == pytest.approx(polled.poll_interval_s, rel=0.1)  # it is not moved by pacing
    _, by_backend = await sync.service.list_changes(APP, "ann", None, Cursor("couple"), 10)
    assert by_backend.poll_interval_s < polled.poll_interval_s
