"""Messages of one collapse key: no attempt of an earlier one begins once a later one was handed over."""

from __future__ import annotations

import asyncio
import uuid
from datetime import timedelta

import pytest

from syncbeat_server.directory.model import Preferences, QuietHours
from syncbeat_server.push.model import (
    ClaimedDelivery,
    DeliveryFilter,
    DeliveryState,
    DeliveryUpdate,
    Outcome,
    Reason,
    Target,
    Verdict,
)
from syncbeat_server.push.store import collapse_keys, lifecycle, queue
from syncbeat_server.storage.postgres.database import Database
from tests.push.test_delivery_lifecycle import crowd, expand_all
from tests.support.build import APP, make_directory, make_worker
from tests.support.doubles import ScriptedProvider
from tests.support.fake_clock import START, FakeClock, wait_until
from tests.support.seed import accept, add_device, claim, couple, message, shown
from tests.support.workers import running, until_due, until_shown

pytestmark = [pytest.mark.store, pytest.mark.usefixtures("database", "clock")]

UNAVAILABLE = Outcome(Verdict.RETRY, Reason.UNAVAILABLE)
REPLACED = "ann SUPPRESSED REPLACED"


async def judged(database: Database, *claimed: ClaimedDelivery) -> list[tuple[str, str]]:
    async with database.transaction() as conn:
        found = await collapse_keys.keep_order(conn, claimed)
    return [(one.state, one.reason) for one in found.values()]


async def finish(database: Database, *ends: DeliveryUpdate) -> None:
    async with database.transaction() as conn:
        await queue.finish(conn, ends)


async def test_collapse_key_replaces_a_failed_earlier_message(database: Database, clock: FakeClock) -> None:
    await couple(database)
    await add_device(database, "ann", "tablet")
    phone, tablet = (Target(user_id="ann", device_id=name) for name in ("phone", "tablet"))
    first, other = message(phone, collapse_key="score"), message(phone, collapse_key="other")
    await accept(database, first, other)
    provider = ScriptedProvider(UNAVAILABLE, UNAVAILABLE)
    worker = make_worker(database, clock, provider, poll_s=600.0)
    async with running(worker):
        await until_shown(database, "ann PENDING UNAVAILABLE", of=first)
        await until_shown(database, "ann PENDING UNAVAILABLE", of=other)
        await clock.advance(1)
        second, elsewhere = message(phone, collapse_key="score"), message(tablet, collapse_key="other")
        await accept(database, second, elsewhere)
        worker.wake()
        await until_shown(database, "ann SENT", of=second)
        await until_shown(database, "ann SENT", of=elsewhere)
        await clock.advance(25)
        worker.wake()
        await until_shown(database, REPLACED, of=first)
        await until_shown(database, "ann SENT", of=other)


@pytest.mark.parametrize("end", ["sent", "ambiguous", "acknowledged", "refused"])
async def test_collapse_key_of_a_sent_message_replaces_waiting_ones(
    database: Database, clock: FakeClock, end: str
) -> None:
    await couple(database)
    first = message(collapse_key="k")
    await accept(database, first)
    await clock.advance(1)
    await accept(database, message(collapse_key="k"))
    early, late = sorted(
        await claim(database, str(uuid.uuid4())), key=lambda d: d.notification_id != first.notification_id
    )
    assert await judged(database, early, late) == [("PENDING", "")], "the later one goes, the earlier one waits for it"
    ends = {
        "sent": DeliveryUpdate(late, DeliveryState.SENT, Reason.NONE),
        "ambiguous": DeliveryUpdate(late, DeliveryState.PENDING, Reason.AMBIGUOUS, due_in_s=10.0),
        "acknowledged": DeliveryUpdate(late, DeliveryState.SENT, Reason.NONE),
        "refused": DeliveryUpdate(late, DeliveryState.DEAD, Reason.REJECTED),
    }
    await finish(database, ends[end])
    if end == "acknowledged":
        async with database.connection() as conn:
            await lifecycle.acknowledge(conn, APP, late.delivery_id, opened=True)
    assert await judged(database, early) == ([] if end == "refused" else [("SUPPRESSED", "REPLACED")])


async def test_collapse_key_waits_while_another_worker_sends_the_earlier(database: Database, clock: FakeClock) -> None:
    await couple(database)
    first = message(collapse_key="k")
    await accept(database, first)
    slow, quick = ScriptedProvider(gated=True), ScriptedProvider()
    async with running(make_worker(database, clock, slow)):
        await wait_until(lambda: slow.under_way == 1)
        second = message(collapse_key="k")
        await clock.advance(1)
        async with running(make_worker(database, clock, quick)):
            await accept(database, second)
            await clock.advance(5)
            assert quick.asked == [], "or the earlier might come after it"
            slow.gate.set()
            await until_shown(database, "ann SENT", of=first)
            await until_shown(database, "ann SENT", of=second, moving=clock)


async def test_collapse_key_shows_only_the_last_of_many(database: Database, clock: FakeClock) -> None:
    await couple(database)
    sent = [message(collapse_key="k") for _ in range(20)]
    for one in sent:
        await accept(database, one)
        await clock.advance(0.01)
    provider = ScriptedProvider()
    async with running(make_worker(database, clock, provider)):
        await until_shown(database, "ann SENT", of=sent[-1])
        for one in sent[:-1]:
            await until_shown(database, REPLACED, of=one, moving=clock)
    assert len(provider.asked) == 1


async def test_collapse_key_order_holds_across_two_workers(database: Database, clock: FakeClock) -> None:
    await couple(database)
    providers = [ScriptedProvider(), ScriptedProvider()]
    sent = []
    async with running(*(make_worker(database, clock, provider) for provider in providers)):
        for _ in range(10):
            sent += [message(collapse_key="k"), message(collapse_key="k")]
            await asyncio.gather(*(accept(database, one) for one in sent[-2:]))
            await clock.advance(0.5)
        # Of two of one moment the ids decide, which are drawn.
        last = max(sent[-2:], key=lambda one: one.notification_id)
        await until_shown(database, "ann SENT", of=last, moving=clock)


async def test_collapse_key_replaces_a_message_held_through_quiet_hours(database: Database, clock: FakeClock) -> None:
    await couple(database)
    quiet = Preferences(quiet_hours=QuietHours(12 * 60, 12 * 60 + 1, ""))
    await make_directory(database).set_preferences(APP, "ann", quiet, by_user=False)
    held, critical = message(collapse_key="k", patient=True), message(collapse_key="k", critical=True)
    await accept(database, held)
    async with running(make_worker(database, clock, ScriptedProvider())):
        await until_shown(database, "ann HELD QUIET_HOURS", of=held)
        await clock.advance(1)
        await accept(database, critical)
        await until_shown(database, "ann SENT", of=critical, moving=clock)
        await until_due(database, clock)
        await until_shown(database, REPLACED, of=held, moving=clock)


async def test_collapse_key_order_of_scheduled_is_their_due_time(database: Database, clock: FakeClock) -> None:
    await couple(database)
    scheduled = message(collapse_key="k", due_at=START + timedelta(seconds=30))
    now = message(collapse_key="k")
    await accept(database, scheduled)
    await accept(database, now)
    async with running(make_worker(database, clock, ScriptedProvider())):
        await until_shown(database, "ann SENT", of=now)
        await until_shown(database, "ann SENT", of=scheduled, moving=clock)


async def test_collapse_key_order_of_fanout_pages_is_that_of_the_notification(
    database: Database, clock: FakeClock
) -> None:
    await crowd(database, 1100)
    large, small = message(Target(scope="crowd"), collapse_key="k"), message(Target(user_id="u999"), collapse_key="k")
    await accept(database, large)
    await clock.advance(1)
    await accept(database, small)
    (claimed,) = await claim(database, str(uuid.uuid4()))
    await finish(database, DeliveryUpdate(claimed, DeliveryState.SENT, Reason.NONE))
    await expand_all(database)
    early = [d for d in await claim(database, str(uuid.uuid4()), 2000) if d.user_id == "u999"]
    assert await judged(database, *early) == [("SUPPRESSED", "REPLACED")]


async def test_collapse_key_redrive_does_not_replace_a_later_message(database: Database, clock: FakeClock) -> None:
    await couple(database)
    dead, later = message(collapse_key="k"), message(collapse_key="k")
    await accept(database, dead)
    provider = ScriptedProvider(Outcome(Verdict.REJECTED, Reason.REJECTED))
    async with running(make_worker(database, clock, provider)):
        await until_shown(database, "ann DEAD REJECTED", of=dead)
        await clock.advance(1)
        await accept(database, later)
        await until_shown(database, "ann SENT", of=later, moving=clock)
        async with database.transaction() as conn:
            assert await lifecycle.redrive(conn, APP, DeliveryFilter(user_id="ann")) == 1
        await until_shown(database, REPLACED, of=dead, moving=clock)
    assert await shown(database, later) == ["ann SENT"]
