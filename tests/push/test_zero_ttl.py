"""A notification with a time to live of 0 is attempted once, now, or never."""

from __future__ import annotations

from datetime import timedelta

import pytest

from syncbeat_server.push.model import Outcome, Reason, Target, Verdict
from syncbeat_server.storage.postgres.database import Database
from tests.push.test_delivery_lifecycle import redrive
from tests.support.build import make_worker
from tests.support.doubles import ScriptedProvider
from tests.support.fake_clock import START, FakeClock
from tests.support.seed import accept, couple, message, value_of
from tests.support.workers import running, until_shown

pytestmark = [pytest.mark.store, pytest.mark.usefixtures("database", "clock")]

FAILURES: dict[str, Outcome | Exception] = {
    "unavailable": Outcome(Verdict.RETRY, Reason.UNAVAILABLE),
    "told to wait": Outcome(Verdict.RETRY, Reason.UNAVAILABLE, retry_after_s=1.0),
    "throttled": Outcome(Verdict.RETRY, Reason.THROTTLED),
    "ambiguous": RuntimeError("the connection broke"),
    "no credentials": Outcome(Verdict.RETRY, Reason.PROVIDER_CONFIG),
}


@pytest.mark.parametrize("failure", FAILURES)
async def test_ttl_zero_is_attempted_once(database: Database, clock: FakeClock, failure: str) -> None:
    await couple(database)
    sent = message(ttl_s=0.0)
    await accept(database, sent)
    provider = ScriptedProvider(FAILURES[failure])
    async with running(make_worker(database, clock, provider)):
        await until_shown(database, "ann EXPIRED", of=sent)
    assert [d.provider_ttl_s for d in provider.asked] == [0]


async def test_ttl_zero_is_sent_now(database: Database, clock: FakeClock) -> None:
    await couple(database)
    now, then = message(ttl_s=0.0), message(ttl_s=0.0, due_at=START + timedelta(seconds=20))
    await accept(database, now, then)
    provider = ScriptedProvider()
    async with running(make_worker(database, clock, provider)):
        await until_shown(database, "ann SENT", of=now)
        await until_shown(database, "ann SENT", of=then, moving=clock)
    assert [d.provider_ttl_s for d in provider.asked] == [0, 0]
    assert await value_of(database, "SELECT bool_and(expires_at = due_at) FROM notifications")


async def test_ttl_zero_expires_unsent(database: Database, clock: FakeClock) -> None:
    await couple(database)
    late = [message(ttl_s=0.0), message(Target(user_id="ann"), ttl_s=0.0, due_at=START + timedelta(seconds=1))]
    await accept(database, *late)
    await clock.advance(12)
    provider = ScriptedProvider()
    async with running(make_worker(database, clock, provider)):
        for one in late:
            await until_shown(database, "ann EXPIRED", of=one, moving=clock)
    assert provider.asked == []


async def test_ttl_zero_can_be_redriven(database: Database, clock: FakeClock) -> None:
    await couple(database)
    sent = message(ttl_s=0.0)
    await accept(database, sent)
    async with running(make_worker(database, clock, ScriptedProvider(Outcome(Verdict.REJECTED, Reason.REJECTED)))):
        await until_shown(database, "ann DEAD REJECTED", of=sent)
        assert await redrive(database, user_id="ann") == 1
        await until_shown(database, "ann SENT", of=sent, moving=clock)
