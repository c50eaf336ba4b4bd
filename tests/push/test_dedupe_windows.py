"""A dedupe window is opened by what is let through: what was not, or comes later, holds off nothing that comes now."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Any

import pytest

from syncbeat_server.push import accept as push
from syncbeat_server.push.model import DeliveryState, DeliveryUpdate, NewNotification, Reason
from syncbeat_server.push.store import lifecycle, queue
from syncbeat_server.storage.postgres.database import Database
from tests.support.build import APP
from tests.support.fake_clock import FakeClock
from tests.support.seed import accept, add_members, claim, couple, message, rows_of, shown, wake

pytestmark = [pytest.mark.store, pytest.mark.usefixtures("database", "clock")]


@pytest.fixture
async def ready(database: Database) -> Database:
    await couple(database)
    return database


def once(**fields: Any) -> NewNotification:
    return message(dedupe_key="goal", **{"dedupe_window_s": 300.0, **fields})


async def end(database: Database, *ends: tuple[DeliveryState, Reason]) -> None:
    """Claim what is due once for each end, and record that."""
    for state, reason in ends:
        claimed = await claim(database, str(uuid.uuid4()))
        assert claimed
        async with database.connection() as conn:
            await queue.finish(conn, [DeliveryUpdate(one, state, reason) for one in claimed])


AGAIN = (DeliveryState.PENDING, Reason.UNAVAILABLE)
UNSENT = {
    "dead at once": ((DeliveryState.DEAD, Reason.REJECTED),),
    "dead after attempts": (AGAIN, AGAIN, (DeliveryState.DEAD, Reason.RETRIES_EXHAUSTED)),
    "seen by itself": ((DeliveryState.CANCELLED, Reason.ALREADY_SEEN),),
    "expired": (AGAIN, (DeliveryState.EXPIRED, Reason.NONE)),
    "muted meanwhile": ((DeliveryState.SUPPRESSED, Reason.MUTED),),
}


@pytest.mark.parametrize("ends", UNSENT.values(), ids=UNSENT)
async def test_dedupe_window_of_an_unsent_push_lets_the_repeat_through(
    ready: Database, ends: tuple[tuple[DeliveryState, Reason], ...]
) -> None:
    await accept(ready, once())
    await end(ready, *ends)
    again, third = once(), once()
    await accept(ready, again)
    await accept(ready, third)
    assert await shown(ready, again, third) == ["ann PENDING", "ann SUPPRESSED DUPLICATE"]


@pytest.mark.parametrize("waits", [(), (AGAIN,), ((DeliveryState.SENT, Reason.NONE),)], ids=["waits", "tried", "sent"])
async def test_dedupe_window_of_a_sent_or_pending_push_suppresses_the_repeat(
    ready: Database, waits: tuple[tuple[DeliveryState, Reason], ...]
) -> None:
    await accept(ready, once())
    await end(ready, *waits)
    again = once()
    await accept(ready, again)
    assert await shown(ready, again) == ["ann SUPPRESSED DUPLICATE"]


async def test_dedupe_window_is_decided_per_device(ready: Database) -> None:
    """Of two devices one has shown the change by itself: only there the next one is not held off."""
    first, second = wake(1), wake(2)
    await accept(ready, first)
    claimed = await claim(ready, str(uuid.uuid4()))
    async with ready.connection() as conn:
        await queue.finish(
            conn,
            [
                DeliveryUpdate(one, DeliveryState.CANCELLED, Reason.ALREADY_SEEN)
                if one.user_id == "ann"
                else DeliveryUpdate(one, DeliveryState.SENT, Reason.NONE)
                for one in claimed
            ],
        )
    await accept(ready, second)
    assert await shown(ready, second) == ["ann PENDING", "bob SCHEDULED TRAILING"]


async def test_dedupe_trailing_delivery_is_sent_whatever_became_of_the_first(ready: Database, clock: FakeClock) -> None:
    first, trailing, merged = wake(1), wake(2), wake(3)
    await accept(ready, first)
    await accept(ready, trailing)
    await end(ready, (DeliveryState.DEAD, Reason.REJECTED))
    await accept(ready, merged)
    assert await shown(ready, trailing, merged) == [
        *["ann SCHEDULED TRAILING", "bob SCHEDULED TRAILING"],
        *["ann SUPPRESSED MERGED", "bob SUPPRESSED MERGED"],
    ]
    await clock.advance(61)
    assert [one.sequence for one in await claim(ready, str(uuid.uuid4()))] == [3, 3]


async def test_dedupe_window_of_a_cancelled_push_lets_the_repeat_through(ready: Database) -> None:
    first, again = once(), once()
    await accept(ready, first)
    async with ready.transaction() as conn:
        assert await lifecycle.cancel(conn, APP, first.notification_id) == 1
    await accept(ready, again)
    assert await shown(ready, again) == ["ann PENDING"]


async def test_dedupe_window_is_cleared_for_a_user_enabled_again(ready: Database) -> None:
    await accept(ready, once())
    async with ready.transaction() as conn:
        await lifecycle.cancel_waiting(conn, APP, "ann", None, Reason.USER_DISABLED)
    again = once()
    await accept(ready, again)
    assert await shown(ready, again) == ["ann PENDING"]


@pytest.mark.parametrize("ahead_s", [10.0, 86_400.0])
async def test_dedupe_window_of_a_scheduled_push_does_not_suppress_one_for_now(
    ready: Database, clock: FakeClock, ahead_s: float
) -> None:
    later, now, again = once(due_at=clock.now() + timedelta(seconds=ahead_s)), once(), once()
    for one in (later, now, again):
        await accept(ready, one)
    assert (await shown(ready, now, again)) == ["ann PENDING", "ann SUPPRESSED DUPLICATE"]


PASSES, HELD_OFF = ["ann PENDING"], ["ann SUPPRESSED DUPLICATE"]


@pytest.mark.parametrize(
    ("due_s", "shown_s", "told"),
    [
        ((10, 1_000), 0, (HELD_OFF, PASSES)),
        ((10, 400), 0, (HELD_OFF, PASSES)),
        ((10, 20), 0, (HELD_OFF, HELD_OFF)),
        ((10, 1_000), 100, (PASSES, PASSES)),
        ((10, 600), 400, (PASSES, HELD_OFF)),
        ((10, 10), 400, (PASSES, HELD_OFF)),
        ((600, 1_200), 0, (PASSES, PASSES)),
    ],
)
async def test_dedupe_windows_of_scheduled_and_immediate_meet_when_due(
    ready: Database, clock: FakeClock, due_s: tuple[int, int], shown_s: int, told: tuple[list[str], list[str]]
) -> None:
    """The window is five minutes. One for now comes before the two, or between them, and is like one that is due."""
    begins = clock.now()
    scheduled = [once(due_at=begins + timedelta(seconds=due)) for due in due_s]
    now = once()
    for one in scheduled:
        await accept(ready, one)
        await clock.advance(1)
    moments = sorted({*due_s, shown_s})
    for moment in moments:
        await clock.advance(moment - (clock.now() - begins).total_seconds())
        async with ready.transaction() as conn:
            await push.expand(conn, [APP])
        if moment == shown_s:
            await accept(ready, now)
    sent = 1 if shown_s - due_s[0] in range(300) else 0
    assert await shown(ready, now) == (HELD_OFF if sent else PASSES)
    assert [await shown(ready, one) for one in scheduled] == [*told]


async def recalled(database: Database, *notifications: NewNotification) -> None:
    """Cancel them while an attempt of each is under way."""
    async with database.transaction() as conn:
        for one in notifications:
            assert await lifecycle.cancel(conn, APP, one.notification_id) == 1


@pytest.mark.parametrize(
    ("end", "told"),
    [
        ((DeliveryState.PENDING, Reason.UNAVAILABLE), PASSES),
        ((DeliveryState.DEAD, Reason.REJECTED), PASSES),
        ((DeliveryState.HELD, Reason.QUIET_HOURS), PASSES),
        ((DeliveryState.SENT, Reason.NONE), HELD_OFF),
    ],
    ids=["fails", "refused", "untimely", "succeeds"],
)
async def test_dedupe_window_of_a_push_cancelled_in_flight_holds_only_if_sent(
    ready: Database, end: tuple[DeliveryState, Reason], told: list[str]
) -> None:
    first, again = once(), once()
    await accept(ready, first)
    claimed = await claim(ready, str(uuid.uuid4()))
    await recalled(ready, first)
    async with ready.connection() as conn:
        await queue.finish(conn, [DeliveryUpdate(one, *end) for one in claimed])
    await accept(ready, again)
    assert await shown(ready, first) == ["ann SENT" if told is HELD_OFF else "ann CANCELLED"]
    assert await shown(ready, again) == told


async def test_dedupe_window_of_a_push_cancelled_and_lost_lets_the_repeat_through(
    ready: Database, clock: FakeClock
) -> None:
    first, again = once(), once()
    await accept(ready, first)
    await claim(ready, str(uuid.uuid4()))
    await recalled(ready, first)
    await clock.advance(31)
    async with ready.connection() as conn:
        assert (await queue.rescue(conn, 10)).rescued == 1
    await accept(ready, again)
    assert await shown(ready, first, again) == ["ann CANCELLED", "ann PENDING"]


async def test_dedupe_window_is_keyed_by_the_scope_of_its_first(ready: Database) -> None:
    """A needless wake-up of one scope tells nothing of another's."""
    await add_members(ready, "chat", "ann")
    await accept(ready, wake(1, "chat"), wake(1))
    claimed = await claim(ready, str(uuid.uuid4()))
    async with ready.connection() as conn:
        ends = {"chat": DeliveryState.CANCELLED, "couple": DeliveryState.SENT}
        await queue.finish(conn, [DeliveryUpdate(one, ends[one.scope], Reason.NONE) for one in claimed])
    chat, couple_ = wake(2, "chat"), wake(2)
    await accept(ready, chat, couple_)
    assert await shown(ready, chat, couple_) == ["ann PENDING", "ann SCHEDULED TRAILING", "bob SCHEDULED TRAILING"]
    assert await rows_of(ready, "SELECT count(*) FROM dedupe_windows WHERE opened_by IS NULL") == [(0,)]
