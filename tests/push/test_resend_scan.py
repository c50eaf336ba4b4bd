"""A silent wake-up that nobody answers is sent again, as the same delivery, and what that tells is kept."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import pytest

from syncbeat_server.directory.model import Platform, Registration
from syncbeat_server.errors import DependencyDown
from syncbeat_server.ops.metrics import Metrics
from syncbeat_server.push.delivery.worker import DeliveryWorker
from syncbeat_server.push.model import Content, NewNotification, Outcome, Reason, Verdict
from syncbeat_server.push.policy.resend import ResendRule
from syncbeat_server.push.policy.retry import RetryRule
from syncbeat_server.push.store import lifecycle, resends
from syncbeat_server.push.store.queue import QUEUE_START
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.sync.model import Cursor, DeviceKey
from syncbeat_server.sync.store.device_cursors import record_fetched
from tests.support.build import APP, make_directory, make_worker
from tests.support.doubles import FailingDatabase, ScriptedProvider, Streams
from tests.support.fake_clock import START, FakeClock, wait_until
from tests.support.seed import (
    EPOCH,
    accept,
    add_device,
    add_members,
    deliveries,
    known_to_answer,
    mark_seen,
    message,
    rows_of,
    shown,
    until,
    value_of,
    wake,
)
from tests.support.workers import running, until_shown

pytestmark = [pytest.mark.store, pytest.mark.usefixtures("database", "clock")]

UNANSWERED = "SELECT count(*) FROM deliveries WHERE answer_by IS NOT NULL"
REACH = "SELECT round(reach_answered::numeric, 2)::float8, round(reach_missed::numeric, 2)::float8 FROM devices"


@pytest.fixture
async def ann(database: Database, clock: FakeClock) -> None:
    await add_device(database, "ann")
    await add_members(database, "couple", "ann")
    await known_to_answer(database)


async def move(clock: FakeClock, seconds: float) -> None:
    """Move by steps of a second: the chores look each second."""
    for _ in range(int(seconds)):
        await clock.advance(1.0)


async def until_asked(provider: ScriptedProvider, times: int, clock: FakeClock) -> None:
    async def asked() -> bool:
        return len(provider.asked) >= times

    await until(asked, f"asked {times} times", moving=clock)


async def over(database: Database) -> bool:
    """Return whether nobody waits for an answer any more."""
    return not await value_of(database, UNANSWERED)


async def until_over(database: Database, clock: FakeClock) -> None:
    await until(partial(over, database), "nobody waits for an answer", moving=clock)


async def until_counted(database: Database, clock: FakeClock) -> None:
    """Wait until the evidence of a wake-up that is over is kept."""
    counted = partial(value_of, database, "SELECT bool_and(reach_at > $1) FROM devices", START)
    await until(counted, "what it tells is kept", moving=clock)
    assert await over(database)


async def fetch(database: Database, sequence: int, epoch: str = EPOCH) -> None:
    """A call of ann's phone was answered up to a sequence."""
    async with database.connection() as conn:
        await conn.execute("UPDATE scopes SET epoch = $1, head = greatest(head, $2)", epoch, sequence)
        await record_fetched(conn, [(DeviceKey(APP, "ann", "phone"), Cursor("couple", epoch, sequence))])


async def send(database: Database, worker: DeliveryWorker, notification: NewNotification) -> None:
    await accept(database, notification)
    worker.wake()
    await until_shown(database, "ann SENT", of=notification)


@pytest.mark.usefixtures("ann")
async def test_resend_of_a_lost_wake_up_backs_off_and_gives_up(database: Database, clock: FakeClock) -> None:
    provider, at, metrics = ScriptedProvider(), list[float](), Metrics()
    provider.on_send = lambda: at.append(clock.monotonic())
    worker = make_worker(database, clock, provider, metrics=metrics.push, poll_s=3.0)
    async with running(worker):
        await send(database, worker, wake(1, ttl_s=3600.0))
        await until_counted(database, clock)
        await move(clock, 30)
        (delivery,) = await deliveries(database)
        assert (delivery.state, delivery.attempts) == ("SENT", 5)
    waits = [later - sooner for sooner, later in pairwise(at)]
    # The clock goes on while the database works: never sooner, and as much later as that takes.
    assert all(due <= wait < due + 12 for wait, due in zip(waits, (15, 30, 60, 120), strict=True)), waits
    assert {(d.delivery_id, d.sequence) for d in provider.asked} == {(delivery.delivery_id, 1)}
    sample = metrics.registry.get_sample_value
    told = [sample("syncbeat_wakeups_total", {"app": APP, "kind": kind}) for kind in ("first", "resend")]
    missed = [sample("syncbeat_wakeups_missed_total", {"app": APP, "tries": t}) for t in ("first", "resend", "all")]
    assert (told, missed) == ([1, 4], [1, 4, 1])
    assert sample("syncbeat_delivery_attempts_total", {"outcome": "SENT"}) == 5
    assert await rows_of(database, REACH) == [(pytest.approx(98.7, abs=0.3), pytest.approx(2.0, abs=0.02))]
    columns = "first_answered, first_missed, second_answered, second_missed, all_answered, all_missed"
    assert await rows_of(database, f"SELECT round({columns.replace(', ', '), round(')}) FROM app_reach") == [
        (0, 1, 0, 1, 0, 1)
    ]


@pytest.mark.usefixtures("ann")
@pytest.mark.parametrize("how", ["shows the cursor", "fetches", "acknowledges"])
async def test_resend_stops_after_an_answer(database: Database, clock: FakeClock, how: str) -> None:
    provider = ScriptedProvider()
    async with running(worker := make_worker(database, clock, provider)):
        await send(database, worker, sent := wake(1))
        await clock.advance(1.0)
        (delivery,) = await deliveries(database)
        if how == "shows the cursor":
            await mark_seen(database, 1)
        elif how == "fetches":
            await fetch(database, 1)
        else:
            async with database.connection() as conn:
                await lifecycle.acknowledge(conn, APP, delivery.delivery_id, opened=False)
        await until_counted(database, clock)
        await move(clock, 30)
        expected = "ann RECEIVED" if how == "acknowledges" else "ann SENT"
        assert await shown(database, sent) == [expected]
    assert len(provider.asked) == 1
    ((answered, missed),) = await rows_of(database, REACH)
    assert 99.9 < answered <= 100.0
    assert missed < 1.05
    assert await value_of(database, "SELECT first_missed + all_missed < 0.1 AND all_answered > 0.9 FROM app_reach")


@pytest.mark.usefixtures("ann")
async def test_resend_ignores_older_cursors_and_other_epochs_as_answers(database: Database, clock: FakeClock) -> None:
    provider = ScriptedProvider()
    async with running(worker := make_worker(database, clock, provider)):
        await send(database, worker, wake(5))
        await mark_seen(database, 4)
        await fetch(database, 9, epoch="another")
        await until_asked(provider, 2, clock)
    assert provider.asked[1].resends == 1


@pytest.mark.usefixtures("ann")
async def test_reach_evidence_of_a_late_poll_is_a_miss(database: Database, clock: FakeClock) -> None:
    async with database.connection() as conn:
        await conn.execute("UPDATE devices SET reach_answered = 1, reach_missed = 1")
    provider = ScriptedProvider()
    async with running(worker := make_worker(database, clock, provider)):
        await send(database, worker, sent := wake(1))
        await until_asked(provider, 2, clock)
        await until_shown(database, "ann SENT", of=sent)  # recorded before the clock goes on, or it was sent later
        await move(clock, 28)
        await fetch(database, 1)
        await until_counted(database, clock)
    assert len(provider.asked) == 2
    ((answered, missed),) = await rows_of(database, REACH)
    assert answered < 1.2
    assert missed > 1.8
    assert await rows_of(database, "SELECT FROM app_reach") == [], "a phone that pushes hardly reach tells of itself"


@pytest.mark.usefixtures("ann")
@pytest.mark.parametrize("trigger", [replace(wake(1), content=Content(title="T")), message()])
async def test_resend_skips_visible_notifications(
    database: Database, clock: FakeClock, trigger: NewNotification
) -> None:
    provider = ScriptedProvider()
    async with running(worker := make_worker(database, clock, provider)):
        await send(database, worker, trigger)
        assert await over(database)
        await move(clock, 20)
    assert len(provider.asked) == 1


async def phone(database: Database, clock: FakeClock, activity: str | None, minutes_ago: float) -> None:
    """Ann has an iPhone that reported its activity a while ago, or never."""
    made = Registration(APP, "ann", "phone", Platform.IOS, "token", "", "")
    await make_directory(database).register(made, "test", by_user=False)
    await add_members(database, "couple", "ann")
    if activity is not None:
        async with database.connection() as conn:
            await conn.execute(
                """UPDATE devices SET activity = jsonb_build_object('state', $1::text),
                          activity_at = syncbeat_now() - make_interval(mins => $2)""",
                activity,
                minutes_ago,
            )


@pytest.mark.parametrize(
    ("activity", "minutes_ago", "times"),
    [(None, 0, 1), ("BACKGROUND", 0, 1), ("FOREGROUND", 60, 1), ("FOREGROUND", 2, 2)],
)
async def test_resend_on_ios_only_in_the_foreground(
    database: Database, clock: FakeClock, activity: str | None, minutes_ago: float, times: int
) -> None:
    await phone(database, clock, activity, minutes_ago)
    provider = ScriptedProvider()
    async with running(worker := make_worker(database, clock, provider)):
        await send(database, worker, wake(1))
        if times == 1:
            await until_over(database, clock)
        await until_asked(provider, times, clock)
    assert len(provider.asked) == times


@pytest.mark.usefixtures("ann")
async def test_resend_is_superseded_by_a_newer_wake_up_of_the_scope(database: Database, clock: FakeClock) -> None:
    await add_members(database, "other", "ann")
    provider = ScriptedProvider()
    async with running(worker := make_worker(database, clock, provider)):
        for trigger in (wake(1, window=0.0), wake(2, window=0.0), wake(1, scope="other", window=0.0)):
            await send(database, worker, trigger)
        await until_asked(provider, 5, clock)
    assert sorted((d.scope, d.sequence, d.resends) for d in provider.asked[3:]) == [("couple", 2, 1), ("other", 1, 1)]


@pytest.mark.usefixtures("ann")
@pytest.mark.parametrize("end", ["it is called back", "it expires", "its token is gone", "its user is shut out"])
async def test_resend_skips_ended_deliveries(database: Database, clock: FakeClock, end: str) -> None:
    provider = ScriptedProvider()
    async with running(worker := make_worker(database, clock, provider)):
        await send(database, worker, sent := wake(1, ttl_s=10.0 if end == "it expires" else 3600.0))
        async with database.transaction() as conn:
            if end == "it is called back":
                assert await lifecycle.cancel(conn, APP, sent.notification_id) == 0
            elif end == "its token is gone":
                await conn.execute(
                    "UPDATE devices SET token_state = 'DEAD', registration_token = NULL, token_digest = NULL"
                )
            elif end == "its user is shut out":
                await conn.execute(
                    """INSERT INTO users (app_id, user_id, disabled_at, created_at)
                       VALUES ($1, 'ann', syncbeat_now(), syncbeat_now())""",
                    APP,
                )
        await until_over(database, clock)
        await move(clock, 20)
        assert await shown(database, sent) == ["ann SENT"]
    assert len(provider.asked) == 1


@pytest.mark.usefixtures("ann")
async def test_resend_recalled_in_flight_is_not_rescanned(database: Database, clock: FakeClock) -> None:
    provider = ScriptedProvider()
    async with running(worker := make_worker(database, clock, provider)):
        await send(database, worker, sent := wake(1))
        provider.gate.clear()
        await until_asked(provider, 2, clock)
        async with database.transaction() as conn:
            await lifecycle.cancel(conn, APP, sent.notification_id)
        provider.gate.set()
        await until_shown(database, "ann SENT", of=sent)
        assert await over(database)


@pytest.mark.usefixtures("ann")
async def test_resend_leaves_it_to_a_live_stream(database: Database, clock: FakeClock) -> None:
    provider, streams = ScriptedProvider(), Streams()
    async with running(worker := make_worker(database, clock, provider, streams=streams)):
        await send(database, worker, sent := wake(1))
        streams.users.add("ann")
        await until(partial(value_of, database, "SELECT resends = 1 AND state = 'SENT' FROM deliveries"), moving=clock)
        assert len(provider.asked) == 1
        assert [d.attempts for d in await deliveries(database, sent)] == [1]
        streams.users.clear()
        await until_asked(provider, 2, clock)


@pytest.mark.usefixtures("ann")
async def test_resend_over_budget_is_postponed_and_given_up(database: Database, clock: FakeClock) -> None:
    provider = ScriptedProvider()
    async with running(worker := make_worker(database, clock, provider)):
        await send(database, worker, sent := wake(1))
        async with database.connection() as conn:
            await conn.execute("UPDATE wake_budgets SET tokens = 0, filled_at = syncbeat_now()")
        await until(partial(value_of, database, "SELECT resends = 1 AND state = 'SENT' FROM deliveries"), moving=clock)
        postpone = "SELECT extract(epoch FROM answer_by - syncbeat_now())::float8 FROM deliveries"
        assert 150 < await value_of(database, postpone) < 180
        assert len(provider.asked) == 1
        await until_asked(provider, 2, clock)
        await until_shown(database, "ann SENT", of=sent)


@pytest.mark.usefixtures("ann")
async def test_resend_provider_failure_costs_the_sent_wake_up_nothing(database: Database, clock: FakeClock) -> None:
    provider = ScriptedProvider(
        Outcome(Verdict.SENT, provider_message_id="first"),
        Outcome(Verdict.RETRY, Reason.UNAVAILABLE),
        Outcome(Verdict.DEAD_TOKEN, Reason.UNREGISTERED),
    )
    async with running(worker := make_worker(database, clock, provider)):
        await send(database, worker, sent := wake(1))
        first = (await deliveries(database, sent))[0].sent_at
        await until_asked(provider, 2, clock)
        await until_shown(database, "ann SENT", of=sent)
        assert [(d.attempts, d.sent_at) for d in await deliveries(database, sent)] == [(1, first)]
        await until_asked(provider, 3, clock)
        await until_shown(database, "ann SENT UNREGISTERED", of=sent)
        assert await over(database)
    assert await value_of(database, "SELECT provider_message_id FROM deliveries") == "first"
    assert await value_of(database, "SELECT token_state FROM devices") == "DEAD"


@pytest.mark.usefixtures("ann")
async def test_resend_survives_a_crash_of_its_worker(database: Database, clock: FakeClock) -> None:
    refuses, hangs, works = FailingDatabase(database), ScriptedProvider(), ScriptedProvider()
    async with running(crashing := make_worker(refuses.as_database, clock, hangs), patience_s=0.0):
        await send(database, crashing, sent := wake(1))
        hangs.gate.clear()
        await until_asked(hangs, 2, clock)
        refuses.error = DependencyDown("it is dead and gives nothing back")
    assert await shown(database, sent) == ["ann IN_FLIGHT"]
    async with running(make_worker(database, clock, works)):
        await until_shown(database, "ann SENT", of=sent, moving=clock)
        await until_asked(works, 1, clock)
    assert [d.delivery_id for d in works.asked] == [hangs.asked[0].delivery_id]
    assert works.asked[0].resends == 2


@pytest.mark.usefixtures("ann")
async def test_resend_is_untouched_by_a_drain(database: Database, clock: FakeClock) -> None:
    provider = ScriptedProvider()
    async with running(worker := make_worker(database, clock, provider), patience_s=0.0):
        await send(database, worker, sent := wake(1))
        provider.gate.clear()
        await until_asked(provider, 2, clock)
    assert [(d.state.value, d.attempts) for d in await deliveries(database, sent)] == [("SENT", 1)]
    assert not await over(database)


@pytest.mark.usefixtures("ann")
async def test_resend_without_delays_still_measures_reach(database: Database, clock: FakeClock) -> None:
    provider = ScriptedProvider()
    rule: dict[str, Any] = {"retry": RetryRule(resend=ResendRule(()))}
    async with running(worker := make_worker(database, clock, provider, **rule)):
        await send(database, worker, wake(1))
        await until_counted(database, clock)
    assert len(provider.asked) == 1
    assert await value_of(database, "SELECT reach_missed > 1.9 FROM devices")


@pytest.mark.usefixtures("ann")
async def test_resend_yields_to_first_attempts(database: Database, clock: FakeClock) -> None:
    provider = ScriptedProvider()
    async with running(worker := make_worker(database, clock, provider, in_flight=1)):
        await send(database, worker, wake(1))
        provider.gate.clear()
        await accept(database, message())
        worker.wake()
        await wait_until(lambda: provider.under_way == 1)
        await move(clock, 25)
        assert [d.resends for d in provider.asked] == [0, 0], "the only place is taken"
        provider.gate.set()
        await until_asked(provider, 3, clock)


async def test_resend_scan_uses_its_index(database: Database) -> None:
    async with database.transaction() as conn:
        await conn.execute("SET LOCAL enable_seqscan = off")
        rows = await conn.fetch("EXPLAIN " + resends.UNANSWERED, 10, 600.0, 86_400.0, QUEUE_START.due_at)
        plan = [row["QUERY PLAN"] for row in rows]
    assert any("deliveries_unanswered" in line for line in plan), plan
    assert any("deliveries_by_device" in line for line in plan), plan
