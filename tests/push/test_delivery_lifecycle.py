"""Tests what callers and devices do to deliveries that were accepted, and what is forgotten in the end."""

from __future__ import annotations

import asyncio
import uuid
from datetime import timedelta
from typing import Any

import pytest

from syncbeat_server.push import accept as push
from syncbeat_server.push.model import DeliveryFilter, DeliveryState, DeliveryUpdate, Outcome, Reason, Target, Verdict
from syncbeat_server.push.store import fanout, lifecycle, queue, queue_figures
from syncbeat_server.storage.postgres.database import Database
from tests.support.build import APP, make_worker
from tests.support.doubles import ScriptedProvider
from tests.support.fake_clock import FakeClock
from tests.support.seed import (
    accept,
    add_members,
    claim,
    couple,
    deliveries,
    message,
    rows_of,
    shown,
    states,
    until,
    value_of,
    wake,
)
from tests.support.workers import running, until_shown

pytestmark = [pytest.mark.store, pytest.mark.usefixtures("database", "clock")]

LEASE = str(uuid.UUID(int=1))


async def acknowledge(database: Database, delivery_id: str, *, opened: bool = False) -> DeliveryState | None:
    async with database.connection() as conn:
        receipt = await lifecycle.acknowledge(conn, APP, delivery_id, opened=opened)
    return None if receipt is None else receipt.state


async def cancel(database: Database, notification: Any) -> int | None:
    async with database.transaction() as conn:
        return await lifecycle.cancel(conn, APP, notification.notification_id)


async def redrive(database: Database, **wanted: Any) -> int:
    async with database.transaction() as conn:
        return await lifecycle.redrive(conn, APP, DeliveryFilter(**wanted))


async def finish(database: Database, *finished: DeliveryUpdate) -> set[str]:
    async with database.transaction() as conn:
        return await queue.finish(conn, finished)


async def test_ack_marks_delivered_and_is_final(database: Database, clock: FakeClock) -> None:
    await couple(database)
    await accept(database, message())
    (flying,) = await claim(database, LEASE)
    await finish(database, DeliveryUpdate(flying, DeliveryState.SENT, Reason.NONE))
    assert await acknowledge(database, flying.delivery_id) is DeliveryState.RECEIVED
    received = (await deliveries(database))[0].received_at
    await clock.advance(10)
    assert await acknowledge(database, flying.delivery_id) is DeliveryState.RECEIVED
    assert await acknowledge(database, flying.delivery_id, opened=True) is DeliveryState.OPENED
    assert await acknowledge(database, flying.delivery_id) is DeliveryState.OPENED
    (found,) = await deliveries(database)
    assert (found.received_at, found.opened_at) == (received, clock.now())
    assert await acknowledge(database, str(uuid.uuid4())) is None


async def test_ack_before_the_attempt_is_recorded_counts(database: Database) -> None:
    await couple(database)
    sent = message()
    await accept(database, sent)
    (flying,) = await claim(database, LEASE)
    assert await acknowledge(database, flying.delivery_id, opened=True) is DeliveryState.OPENED
    late = DeliveryUpdate(flying, DeliveryState.PENDING, Reason.AMBIGUOUS, due_in_s=10.0)
    assert await finish(database, late) == set(), "it is not sent again"
    assert await shown(database, sent) == ["ann OPENED"]


@pytest.mark.parametrize("state", [DeliveryState.DEAD, DeliveryState.PENDING, DeliveryState.CANCELLED])
async def test_ack_of_a_dead_delivery_counts(database: Database, state: DeliveryState) -> None:
    await couple(database)
    sent = message()
    await accept(database, sent)
    (flying,) = await claim(database, LEASE)
    await finish(database, DeliveryUpdate(flying, state, Reason.AMBIGUOUS))
    assert await acknowledge(database, flying.delivery_id) is DeliveryState.RECEIVED
    (found,) = await deliveries(database)
    assert (found.state, found.reason, found.ambiguous) == (DeliveryState.RECEIVED, Reason.NONE, True)


async def test_ack_of_an_unsent_delivery_is_refused(database: Database) -> None:
    await couple(database)
    await accept(database, message())
    (waits,) = await deliveries(database)
    assert await acknowledge(database, waits.delivery_id, opened=True) is DeliveryState.PENDING
    (found,) = await deliveries(database)
    assert (found.received_at, found.opened_at) == (None, None)


async def test_cancel_spares_sent_and_in_flight(database: Database) -> None:
    await couple(database)
    sent = message(Target(user_id="ann"), Target(user_id="bob"))
    await accept(database, sent)
    (flying,) = await claim(database, LEASE, limit=1)
    assert await cancel(database, sent) == 2
    assert await cancel(database, sent) == 0
    await finish(database, DeliveryUpdate(flying, DeliveryState.SENT, Reason.NONE))
    (other,) = {"ann", "bob"} - {flying.user_id}
    assert set(await shown(database, sent)) == {f"{flying.user_id} SENT", f"{other} CANCELLED"}
    assert await cancel(database, message()) is None


async def test_cancel_of_a_message_frees_its_dedupe_window(database: Database) -> None:
    await couple(database)
    first, second, third = (message(dedupe_key="k") for _ in range(3))
    await accept(database, first)
    await accept(database, second)
    await cancel(database, first)
    await accept(database, third)
    assert await shown(database, first, second, third) == ["ann CANCELLED", "ann SUPPRESSED DUPLICATE", "ann PENDING"]


async def test_cancel_of_a_trailing_wake_up_frees_its_place(database: Database, clock: FakeClock) -> None:
    await couple(database)
    first, trailing, after = (wake(n, exclude_user_id="bob") for n in (1, 2, 3))
    await accept(database, first)
    await accept(database, trailing)
    assert await cancel(database, trailing) == 1
    await accept(database, after)
    assert await shown(database, after) == ["ann SCHEDULED TRAILING"]
    await clock.advance(60)
    assert [d.sequence for d in await claim(database, LEASE) if d.notification_id == after.notification_id] == [3]


async def test_redrive_sends_dead_deliveries_with_a_fresh_ttl(database: Database, clock: FakeClock) -> None:
    await couple(database)
    sent, other = message(ttl_s=100.0), message(Target(user_id="bob"), ttl_s=100.0)
    await accept(database, sent, other)
    rejects = Outcome(Verdict.REJECTED, Reason.REJECTED)
    provider = ScriptedProvider(rejects, rejects)
    worker = make_worker(database, clock, provider)
    async with running(worker):
        await until_shown(database, "ann DEAD REJECTED", of=sent)
        await until_shown(database, "bob DEAD REJECTED", of=other)
        await clock.advance(101)
        assert await redrive(database, user_id="ann") == 1
        worker.wake()
        await until_shown(database, "ann SENT", of=sent)
    assert await shown(database, other) == ["bob DEAD REJECTED"]
    assert (provider.asked[-1].attempt, provider.asked[-1].ttl_s) == (1, 100.0)
    assert await redrive(database, notification_id=sent.notification_id) == 0


async def test_retention_deletes_ended_deliveries_and_spares_waiting(database: Database, clock: FakeClock) -> None:
    await couple(database)
    old, waiting = message(ttl_s=60.0), message(ttl_s=60.0)
    await accept(database, old)
    for flying in await claim(database, LEASE):
        await finish(database, DeliveryUpdate(flying, DeliveryState.SENT, Reason.NONE))
    await accept(database, waiting)
    await clock.advance(2 * 86_400)
    await accept(database, message())
    async with database.connection() as conn:
        assert (await lifecycle.forget_notifications(conn, 3.0, 100)).gone == 0
        assert (await lifecycle.forget_notifications(conn, 1.0, 100)).gone == 2, "with its delivery"
    assert await value_of(database, "SELECT count(*) FROM notifications") == 2
    assert await shown(database, waiting) == ["ann PENDING"]


async def audit(database: Database, clock: FakeClock) -> tuple[int, int]:
    async with database.connection() as conn:
        return await queue_figures.count_unaccounted(conn, timedelta(hours=12), 1000)


async def test_accepted_count_equals_states_and_a_lost_row_is_noticed(database: Database, clock: FakeClock) -> None:
    await couple(database)
    await accept(database, message(), message(Target(scope="couple")), message(Target(user_id="nobody")))
    assert await audit(database, clock) == (3, 0)
    async with database.connection() as conn:
        await conn.execute("DELETE FROM deliveries WHERE user_id = 'bob'")
    assert await audit(database, clock) == (2, 1)


# Large targets


async def crowd(database: Database, count: int) -> None:
    """A scope of so many users with a phone each; every tenth is muted, has no token or is shut out."""
    async with database.connection() as conn:
        await conn.execute(
            """INSERT INTO devices (app_id, user_id, device_id, platform, registration_token, token_digest, token_state,
                                    token_registered_at, registered_at, updated_at)
               SELECT $1, 'u' || n, 'phone', 'WEB', CASE WHEN n % 10 > 0 THEN 't' || n END,
                      CASE WHEN n % 10 > 0 THEN sha256(('t' || n)::bytea) END,
                      CASE WHEN n % 10 > 0 THEN 'ACTIVE' ELSE 'NONE' END, syncbeat_now(), syncbeat_now(), syncbeat_now()
               FROM generate_series(1, $2::int) n""",
            APP,
            count,
        )
    for start in range(1, count + 1, 1000):
        await add_members(database, "crowd", *(f"u{n}" for n in range(start, min(start + 1000, count + 1))))


async def expand_all(database: Database) -> list[int]:
    pages: list[int] = []
    while True:
        async with database.transaction() as conn:
            written = await push.expand(conn, [APP])
        if written is None:
            return pages
        pages.append(written)


async def test_fanout_of_a_thousand_devices_is_written_at_once(database: Database) -> None:
    await crowd(database, 1000)
    (accepted,) = await accept(database, message(Target(scope="crowd")))
    assert (accepted.delivery_count, accepted.suppressed_count) == (1000, 100)
    assert await expand_all(database) == []


async def test_fanout_beyond_a_thousand_is_written_page_by_page(database: Database, clock: FakeClock) -> None:
    await crowd(database, 2500)
    sent, small = wake(7, scope="crowd", exclude_user_id="u1"), message(Target(user_id="u1"))
    big, little = await accept(database, sent, small)
    assert (big.delivery_count, big.suppressed_count, little.delivery_count) == (2499, 0, 1)
    assert await states(database) == {"PENDING": 1}
    assert await value_of(database, "SELECT accepted IS NULL FROM notifications WHERE kind = 'SYNC'")
    await clock.advance(600)
    assert await expand_all(database) == [1000, 1000, 499]
    counts = await rows_of(database, "SELECT state, reason, count(*) FROM deliveries GROUP BY 1, 2 ORDER BY 1, 2")
    assert counts == [("PENDING", "", 2250), ("SUPPRESSED", "NO_TOKEN", 250)]
    assert await value_of(database, "SELECT count(DISTINCT expires_at) FROM deliveries WHERE scope = 'crowd'") == 1
    expiry = (
        "SELECT bool_and(d.expires_at = n.expires_at) FROM deliveries d JOIN notifications n USING (notification_id)"
    )
    assert await value_of(database, expiry)
    assert await value_of(database, "SELECT accepted FROM notifications WHERE kind = 'SYNC'") == 2499
    assert await value_of(database, "SELECT count(*) FROM expansions") == 0
    assert await audit(database, clock) == (2500, 0)
    merged = wake(8, scope="crowd")
    await accept(database, merged)
    await expand_all(database)
    assert await value_of(database, "SELECT count(*) FROM deliveries WHERE reason = 'TRAILING'") == 2249


async def test_fanout_by_several_workers_writes_once(database: Database, clock: FakeClock) -> None:
    await crowd(database, 3000)
    await accept(database, message(Target(scope="crowd")), message(Target(scope="crowd")))
    await asyncio.gather(*(expand_all(database) for _ in range(3)))
    await expand_all(database)
    assert await value_of(database, "SELECT count(*) FROM deliveries") == 6000
    assert await audit(database, clock) == (6000, 0)


async def test_fanout_cancelled_midway(database: Database, clock: FakeClock) -> None:
    await crowd(database, 2500)
    sent = message(Target(scope="crowd"))
    await accept(database, sent)
    async with database.transaction() as conn:
        await push.expand(conn, [APP])
    assert await cancel(database, sent) == 900 + 1500
    assert await cancel(database, sent) == 0
    assert await expand_all(database) == [1000, 500]
    assert await states(database) == {"CANCELLED": 2250, "SUPPRESSED": 250}
    assert await audit(database, clock) == (2500, 0)


async def test_fanout_job_is_expanded_by_a_worker(database: Database, clock: FakeClock) -> None:
    await crowd(database, 1200)
    sent = message(Target(scope="crowd"))
    await accept(database, sent)
    provider = ScriptedProvider()
    async with running(make_worker(database, clock, provider)):

        async def all_sent() -> bool:
            await clock.advance(1.0)
            return await states(database) == {"SENT": 1080, "SUPPRESSED": 120}

        await until(all_sent)
    assert set(provider.times.values()) == {1}


async def test_fanout_skips_members_who_leave_meanwhile(database: Database) -> None:
    await crowd(database, 1500)
    await accept(database, message(Target(scope="crowd")))
    async with database.transaction() as conn:
        await push.expand(conn, [APP])
    async with database.connection() as conn:
        await conn.execute("DELETE FROM devices WHERE user_id IN (SELECT max(user_id) FROM devices)")
    await expand_all(database)
    assert await value_of(database, "SELECT accepted FROM notifications") == 1499


def test_fanout_of_few_devices_needs_no_count() -> None:
    few = message(*(Target(user_id=f"u{n}") for n in range(10)))
    many = message(*(Target(user_id=f"u{n}") for n in range(11)))
    named = message(*(Target(user_id=f"u{n}", device_id="phone") for n in range(1000)))
    assert [fanout.may_be_large(n) for n in (few, many, named, wake(1))] == [False, True, False, True]
