"""The day's maximum counts what was shown: what was refused gives its place back."""

from __future__ import annotations

import uuid

import pytest

from syncbeat_server.directory.model import Preferences
from syncbeat_server.push.model import Content, Outcome, Reason, Verdict
from syncbeat_server.push.store import queue
from syncbeat_server.storage.postgres.database import Database
from tests.support.build import APP, make_directory, make_worker
from tests.support.doubles import ScriptedProvider
from tests.support.fake_clock import FakeClock, wait_until
from tests.support.seed import accept, claim, couple, deliveries, message, shown, value_of
from tests.support.workers import running, until_shown

pytestmark = [pytest.mark.store, pytest.mark.usefixtures("database", "clock")]

REFUSALS = {
    "rejected": (Outcome(Verdict.REJECTED, Reason.REJECTED), "ann DEAD REJECTED"),
    "foreign token": (Outcome(Verdict.REJECTED, Reason.WRONG_SENDER), "ann DEAD WRONG_SENDER"),
    "unavailable": (Outcome(Verdict.RETRY, Reason.UNAVAILABLE), "ann PENDING UNAVAILABLE"),
    "throttled": (Outcome(Verdict.RETRY, Reason.THROTTLED), "ann PENDING THROTTLED"),
    "no credentials": (Outcome(Verdict.RETRY, Reason.PROVIDER_CONFIG), "ann PENDING PROVIDER_CONFIG"),
}


async def most_a_day(database: Database, most: int) -> None:
    await make_directory(database).set_preferences(APP, "ann", Preferences(max_per_day=most), by_user=False)


async def counted(database: Database) -> int:
    return int(await value_of(database, "SELECT count(counted_at) FROM deliveries"))


@pytest.mark.parametrize("refusal", REFUSALS)
async def test_daily_limit_slot_returns_after_a_refusal(database: Database, clock: FakeClock, refusal: str) -> None:
    outcome, state = REFUSALS[refusal]
    await couple(database)
    await most_a_day(database, 1)
    refused = message()
    await accept(database, refused)
    async with running(make_worker(database, clock, ScriptedProvider(outcome))):
        await until_shown(database, state, of=refused)
    assert await counted(database) == 0


async def test_daily_limit_slot_stays_after_an_ambiguous_send(database: Database, clock: FakeClock) -> None:
    await couple(database)
    await most_a_day(database, 1)
    perhaps = message()
    await accept(database, perhaps)
    async with running(make_worker(database, clock, ScriptedProvider(RuntimeError("the connection broke")))):
        await until_shown(database, "ann PENDING AMBIGUOUS", of=perhaps)
    assert await counted(database) == 1


async def test_daily_limit_slot_returns_with_an_untried_lease(database: Database, clock: FakeClock) -> None:
    await couple(database)
    await accept(database, message())
    lease = str(uuid.uuid4())
    await claim(database, lease)
    async with database.connection() as conn:
        await conn.execute("UPDATE deliveries SET counted_at = syncbeat_now()")
        await queue.release(conn, [lease])
    assert await counted(database) == 0


async def test_daily_limit_slot_of_a_refused_message_serves_the_next(database: Database, clock: FakeClock) -> None:
    await couple(database)
    await most_a_day(database, 1)
    first, second, third = (message(patient=True) for _ in range(3))
    await accept(database, first)
    provider = ScriptedProvider(REFUSALS["rejected"][0], gated=True)
    worker = make_worker(database, clock, provider, poll_s=600.0)
    async with running(worker):
        await wait_until(lambda: provider.under_way == 1)
        await accept(database, second, third)
        worker.wake()
        for one in (second, third):
            await until_shown(database, "ann HELD DAILY_MAXIMUM", of=one)
        provider.gate.set()
        await until_shown(database, "ann DEAD REJECTED", of=first)
        for _ in range(2):
            await clock.advance(3)
            worker.wake()
            await wait_until(lambda: len(provider.asked) == 2)
        await clock.advance(3)
        worker.wake()

        async def one_waits_for_tomorrow() -> bool:
            held = [d for d in await deliveries(database) if d.state == "HELD"]
            return len(held) == 1 and (held[0].due_at - clock.now()).total_seconds() > 10_000

        await wait_until(one_waits_for_tomorrow)
        assert sorted(await shown(database, second, third)) == ["ann HELD DAILY_MAXIMUM", "ann SENT"]


@pytest.mark.parametrize("content", [Content(title="T"), Content(data={"k": "v"}), Content(title="T", data={"k": "v"})])
async def test_mute_after_acceptance_suppresses(database: Database, clock: FakeClock, content: Content) -> None:
    await couple(database)
    sent, critical = message(type="ads", content=content), message(type="ads", critical=True)
    await accept(database, sent, critical)
    await make_directory(database).set_preferences(APP, "ann", Preferences(muted_types=("ads",)), by_user=False)
    provider = ScriptedProvider()
    async with running(make_worker(database, clock, provider)):
        await until_shown(database, "ann SUPPRESSED MUTED", of=sent)
        await until_shown(database, "ann SENT", of=critical)
    assert [m.content.visible for m in provider.messages] == [True]
