"""The delivery worker: what was accepted is delivered, whoever dies in between, and once where it can be helped."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from functools import partial

import pytest

from syncbeat_server.errors import DependencyDown
from syncbeat_server.push.delivery.channel import Channel
from syncbeat_server.push.model import Outcome, Reason, Target, Verdict
from syncbeat_server.push.policy.retry import RetryRule
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.storage.postgres.driver_errors import StatementRejected
from tests.support.build import APP, make_channel, make_worker
from tests.support.doubles import FailingDatabase, ScriptedProvider, Streams
from tests.support.fake_clock import FakeClock, wait_until
from tests.support.seed import (
    accept,
    add_device,
    add_members,
    couple,
    deliveries,
    mark_seen,
    message,
    shown,
    states,
    until,
    value_of,
    wake,
)
from tests.support.workers import running, until_due, until_shown

pytestmark = [pytest.mark.store, pytest.mark.usefixtures("database", "clock")]

UNAVAILABLE = Outcome(Verdict.RETRY, Reason.UNAVAILABLE)


async def test_worker_sends_and_records_due_deliveries(database: Database, clock: FakeClock) -> None:
    await couple(database)
    provider, outcomes = ScriptedProvider(), list[str]()
    worker = make_worker(database, clock, provider, attempt_ended=outcomes.append)
    before = message()
    await accept(database, before)
    async with running(worker):
        await until_shown(database, "ann SENT", of=before)
        after = message(Target(scope="couple"))
        await accept(database, after)
        worker.wake()
        await until_shown(database, "ann SENT", "bob SENT", of=after)
    assert [d.registration_token for d in provider.asked[:1]] == ["token-of-ann-phone"]
    assert outcomes == ["SENT"] * 3
    assert set(provider.times.values()) == {1}


async def test_worker_polls_without_a_wake_up(database: Database, clock: FakeClock) -> None:
    await couple(database)
    sent = message(due_at=clock.now() + timedelta(seconds=20))
    await accept(database, sent)
    provider = ScriptedProvider()
    async with running(make_worker(database, clock, provider, poll_s=1.0)):
        await clock.advance(19)
        assert provider.asked == []
        await clock.advance(2)
        await until_shown(database, "ann SENT", of=sent)


async def test_backoff_after_503_retries_the_same_delivery(database: Database, clock: FakeClock) -> None:
    await couple(database)
    sent = message()
    await accept(database, sent)
    provider = ScriptedProvider(UNAVAILABLE, UNAVAILABLE)
    async with running(make_worker(database, clock, provider)):
        await until_shown(database, "ann PENDING UNAVAILABLE", of=sent)
        (waiting,) = await deliveries(database)
        assert 10 <= (waiting.due_at - clock.now()).total_seconds() <= 20
        await clock.advance(9.9)
        assert len(provider.asked) == 1
        await until_due(database, clock)
        await wait_until(lambda: len(provider.asked) == 2)
        await wait_until(
            lambda: value_of(database, "SELECT bool_and(attempts = 2 AND state = 'PENDING') FROM deliveries")
        )
        await until_due(database, clock)
        await until_shown(database, "ann SENT", of=sent)
    assert list(provider.times.values()) == [3]
    assert [d.attempt for d in provider.asked] == [1, 2, 3]


async def test_retry_after_is_honoured(database: Database, clock: FakeClock) -> None:
    await couple(database)
    sent = message()
    await accept(database, sent)
    provider = ScriptedProvider(Outcome(Verdict.RETRY, Reason.THROTTLED, retry_after_s=123.0))
    async with running(make_worker(database, clock, provider)):
        await until_shown(database, "ann PENDING THROTTLED", of=sent)
        (waiting,) = await deliveries(database)
        assert 123 <= (waiting.due_at - clock.now()).total_seconds() <= 184
        await clock.advance(122.9)
        assert len(provider.asked) == 1
        await until_due(database, clock)
        await until_shown(database, "ann SENT", of=sent)


async def test_retry_after_beyond_the_ttl_expires_the_message(database: Database, clock: FakeClock) -> None:
    await couple(database)
    sent = message(ttl_s=90.0)
    await accept(database, sent)
    provider = ScriptedProvider(Outcome(Verdict.RETRY, Reason.UNAVAILABLE, retry_after_s=3600.0))
    async with running(make_worker(database, clock, provider)):
        await until_shown(database, "ann PENDING UNAVAILABLE", of=sent)
        await clock.advance(89)
        assert await shown(database, sent) == ["ann PENDING UNAVAILABLE"]
        await until_shown(database, "ann EXPIRED", of=sent, moving=clock)
    assert len(provider.asked) == 1, "not before the time that was asked for"


async def test_expired_delivery_is_not_sent(database: Database, clock: FakeClock) -> None:
    await couple(database)
    late = message(ttl_s=60.0)
    await accept(database, late)
    await clock.advance(60)
    provider = ScriptedProvider()
    async with running(make_worker(database, clock, provider)):
        await until_shown(database, "ann EXPIRED", of=late)
    assert provider.asked == []
    assert [d.attempts for d in await deliveries(database)] == [0]


async def test_wake_up_is_left_to_a_live_stream_and_cancelled_by_its_cursor(
    database: Database, clock: FakeClock
) -> None:
    await couple(database)
    streams, provider = Streams(), ScriptedProvider()
    streams.users = {"ann", "bob"}
    woken = wake(5)
    await accept(database, woken)
    rule = RetryRule(grace_s=5.0)
    async with running(make_worker(database, clock, provider, streams=streams, retry=rule)):
        await until_shown(database, "ann HELD LIVE_STREAM", "bob HELD LIVE_STREAM", of=woken)
        await mark_seen(database, 5, "ann")
        await mark_seen(database, 4, "bob")
        await clock.advance(4.9)
        assert await shown(database, woken) == ["ann HELD LIVE_STREAM", "bob HELD LIVE_STREAM"]
        await clock.advance(1.1)
        await until_shown(database, "ann CANCELLED ALREADY_SEEN", "bob SENT", of=woken)
    assert [d.user_id for d in provider.asked] == ["bob"]


async def test_message_is_pushed_despite_live_streams(database: Database, clock: FakeClock) -> None:
    await couple(database)
    streams = Streams()
    streams.users = {"ann"}
    sent = message()
    await accept(database, sent)
    async with running(make_worker(database, clock, ScriptedProvider(), streams=streams)):
        await until_shown(database, "ann SENT", of=sent)
    assert streams.questions == []


async def test_dedupe_trailing_change_is_pushed_at_the_end_of_its_window(database: Database, clock: FakeClock) -> None:
    await add_device(database, "ann")
    await add_members(database, "couple", "ann")
    provider = ScriptedProvider()
    calls = [wake(sequence) for sequence in range(1, 6)]
    worker = make_worker(database, clock, provider)
    async with running(worker):
        for call in calls:
            await accept(database, call)
            worker.wake()
            await until_shown(database, "ann SENT", of=calls[0])
        await mark_seen(database, 1)
        await clock.advance(59)
        assert len(provider.asked) == 1
        await clock.advance(2)
        await until_shown(database, "ann SENT", of=calls[1])
    assert [(d.sequence, d.notification_id) for d in provider.asked] == [
        (1, calls[0].notification_id),
        (5, calls[1].notification_id),
    ]
    assert await states(database) == {"SENT": 2, "SUPPRESSED": 3}


async def test_provider_exception_costs_neither_delivery_nor_worker(
    database: Database, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    await couple(database)
    first, second = message(), message(Target(user_id="bob"))
    await accept(database, first)
    provider = ScriptedProvider(RuntimeError("broken"))
    worker = make_worker(database, clock, provider)
    async with running(worker):
        await until_shown(database, "ann PENDING AMBIGUOUS", of=first)
        await accept(database, second)
        worker.wake()
        await until_shown(database, "bob SENT", of=second)
        await until_due(database, clock)
        await until_shown(database, "ann SENT", of=first)
    assert "a provider raised" in caplog.text


async def test_app_without_a_provider_waits_for_one(database: Database, clock: FakeClock) -> None:
    await couple(database)
    sent = message()
    await accept(database, sent)
    channels = dict[str, Channel]()
    async with running(make_worker(database, clock, channels=channels)):
        await clock.advance(3)
        assert await shown(database, sent) == ["ann PENDING"]
        channels[APP] = make_channel(ScriptedProvider(), clock)
        await until_shown(database, "ann SENT", of=sent, moving=clock)


async def test_database_outage_between_send_and_record_does_not_send_twice(
    database: Database, clock: FakeClock
) -> None:
    await couple(database)
    sent = message()
    await accept(database, sent)
    refuses, provider = FailingDatabase(database), ScriptedProvider()

    def fall_down() -> None:
        refuses.error = DependencyDown("the database does not answer")

    provider.on_send = fall_down
    async with running(make_worker(refuses.as_database, clock, provider)):
        await wait_until(lambda: refuses.refused)
        for _ in range(3):
            await clock.advance(1)
        assert await shown(database, sent) == ["ann IN_FLIGHT"]
        refuses.error = None
        await clock.advance(1)
        await until_shown(database, "ann SENT", of=sent)
    assert list(provider.times.values()) == [1]
    assert refuses.refused > 3


async def test_database_outage_ends_and_the_worker_resumes(database: Database, clock: FakeClock) -> None:
    await couple(database)
    sent = message()
    await accept(database, sent)
    refuses, provider = FailingDatabase(database), ScriptedProvider()
    refuses.error = DependencyDown("the database does not answer")
    async with running(make_worker(refuses.as_database, clock, provider)):
        await wait_until(lambda: refuses.refused)
        refuses.error = None
        await clock.advance(1)
        await until_shown(database, "ann SENT", of=sent)


async def test_two_workers_send_everything_once(database: Database, clock: FakeClock) -> None:
    for user in range(20):
        await add_device(database, f"user-{user}")
    await add_members(database, "many", *(f"user-{user}" for user in range(20)))
    provider = ScriptedProvider()
    workers = [make_worker(database, clock, provider, in_flight=7) for _ in range(2)]
    async with running(*workers):
        for _ in range(10):
            await accept(database, *(message(Target(scope="many")) for _ in range(2)))
            for worker in workers:
                worker.wake()

        async def all_sent() -> bool:
            return await states(database) == {"SENT": 400}

        await until(all_sent)
    assert len(provider.asked) == len(provider.times) == 400
    assert len({d.lease_token for d in provider.asked}) > 2
    assert provider.most_under_way <= 14


async def test_in_flight_limit_bounds_attempts(database: Database, clock: FakeClock) -> None:
    await couple(database)
    await accept(database, *(message() for _ in range(9)))
    provider = ScriptedProvider(gated=True)
    async with running(make_worker(database, clock, provider, in_flight=4)):
        await wait_until(lambda: provider.under_way == 4)
        provider.gate.set()

        async def all_sent() -> bool:
            return await states(database) == {"SENT": 9}

        await until(all_sent)
    assert provider.most_under_way == 4


async def test_lease_of_a_crashed_worker_passes_to_another(database: Database, clock: FakeClock) -> None:
    await couple(database)
    sent = message()
    await accept(database, sent)
    refuses, hangs, works = FailingDatabase(database), ScriptedProvider(gated=True), ScriptedProvider()
    crashing = asyncio.ensure_future(make_worker(refuses.as_database, clock, hangs).run())
    await wait_until(lambda: hangs.asked)
    refuses.error = DependencyDown("it is dead and gives nothing back")
    crashing.cancel()
    await asyncio.wait([crashing], timeout=20)
    async with running(make_worker(database, clock, works, lease_s=30.0)):
        await clock.advance(29)
        assert works.asked == []
        await until_shown(database, "ann SENT", of=sent, moving=clock)
    assert [(d.delivery_id, d.attempt) for d in works.asked] == [(hangs.asked[0].delivery_id, 2)]


async def test_lease_is_extended_during_a_slow_attempt(database: Database, clock: FakeClock) -> None:
    await couple(database)
    sent = message()
    await accept(database, sent)
    slow, other = ScriptedProvider(gated=True), ScriptedProvider()
    async with running(make_worker(database, clock, slow, lease_s=30.0)):
        await wait_until(lambda: slow.asked)
        async with running(make_worker(database, clock, other, lease_s=30.0)):
            for _ in range(16):
                before = await value_of(database, "SELECT lease_until FROM deliveries")
                await clock.advance(7.5)
                extended = partial(value_of, database, "SELECT lease_until > $1 FROM deliveries", before)
                await until(extended, what="the lease is extended")
            slow.gate.set()
            await until_shown(database, "ann SENT", of=sent)
    assert (len(slow.asked), len(other.asked)) == (1, 0)


@pytest.mark.parametrize("hook", ["attempt_ended", "record"])
async def test_lease_of_a_stuck_attempt_is_not_extended_forever(
    database: Database, clock: FakeClock, caplog: pytest.LogCaptureFixture, hook: str
) -> None:
    caplog.set_level(logging.ERROR)
    await couple(database)
    sent = message()
    await accept(database, sent)
    refuses, provider, faults = FailingDatabase(database), ScriptedProvider(), [RuntimeError("a bug")]

    def attempt_ended(outcome: str) -> None:
        if hook == "attempt_ended" and faults:
            raise faults.pop()
        if hook == "record" and faults:
            faults.pop()
            refuses.error = StatementRejected("22021", "")  # what PostgreSQL says of a value that it will never take

    worker = make_worker(refuses.as_database, clock, provider, attempt_ended=attempt_ended, lease_s=30.0)
    async with running(worker):
        await wait_until(lambda: "a delivery attempt failed" in caplog.text)
        refuses.error = None
        assert await shown(database, sent) == ["ann IN_FLIGHT"]
        await until_shown(database, "ann SENT", of=sent, moving=clock)
    assert list(provider.times.values()) == [2]
