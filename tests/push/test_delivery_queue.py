"""The delivery queue: who gets what, for how long, and what a worker that lost its lease can still do: nothing."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter

import pytest

from syncbeat_server.directory.model import Platform, Registration
from syncbeat_server.directory.store import dead_token_removal
from syncbeat_server.push.accept import accept as accept_in
from syncbeat_server.push.model import ClaimedDelivery, DeliveryState, DeliveryUpdate, Kind, Lane, Reason, Target
from syncbeat_server.push.policy.holds import hold_or_end
from syncbeat_server.push.policy.retry import RetryRule
from syncbeat_server.push.store import dedupe_windows, queue
from syncbeat_server.storage.postgres.database import Database
from tests.support.build import APP, make_directory
from tests.support.fake_clock import START, FakeClock, wait_until
from tests.support.seed import (
    EPOCH,
    accept,
    add_device,
    add_members,
    claim,
    couple,
    deliveries,
    mark_seen,
    message,
    rows_of,
    shown,
    value_of,
    wake,
)

pytestmark = [pytest.mark.store, pytest.mark.usefixtures("database", "clock")]

LEASE, OTHER = str(uuid.UUID(int=1)), str(uuid.UUID(int=2))


async def finish(database: Database, *finished: DeliveryUpdate) -> set[str]:
    async with database.connection() as conn:
        return await queue.finish(conn, finished)


async def rescue(database: Database) -> int:
    async with database.connection() as conn:
        return (await queue.rescue(conn, 100)).rescued


async def claimed_one(database: Database, lease: str = LEASE) -> ClaimedDelivery:
    (found,) = await claim(database, lease)
    return found


async def test_queue_order_is_priority_then_due_time(database: Database, clock: FakeClock) -> None:
    await couple(database)
    sent = [
        message(lane=Lane.NORMAL),
        message(lane=Lane.HIGH),
        message(lane=Lane.NORMAL),
        message(lane=Lane.HIGH),
    ]
    for one in (sent[n] for n in (0, 3, 2, 1)):
        await accept(database, one)
        await clock.advance(1)
    order = [(await claimed_one_of_many(database)).notification_id for _ in range(4)]
    assert order == [sent[n].notification_id for n in (3, 1, 0, 2)]
    assert await claim(database, LEASE) == []


async def claimed_one_of_many(database: Database) -> ClaimedDelivery:
    (found,) = await claim(database, str(uuid.uuid4()), limit=1)
    return found


async def test_queue_order_is_kept_within_a_claim(database: Database) -> None:
    await couple(database)
    sent = [message(lane=lane) for lane in (Lane.NORMAL, Lane.HIGH, Lane.NORMAL, Lane.HIGH)]
    await accept(database, *sent)
    assert [d.lane for d in await claim(database, LEASE)] == [Lane.HIGH, Lane.HIGH, Lane.NORMAL, Lane.NORMAL]


async def test_claim_returns_all_an_attempt_needs(database: Database, clock: FakeClock) -> None:
    await couple(database)
    sent = wake(7, exclude_user_id="bob", collapse_key="c", lane=Lane.HIGH, ttl_s=100.0)
    await accept(database, sent)
    await clock.advance(30)
    found = await claimed_one(database)
    assert (found.app_id, found.user_id, found.device_id, found.platform) == (APP, "ann", "phone", "ANDROID")
    assert (found.registration_token, found.kind, found.type) == ("token-of-ann-phone", Kind.SYNC, "news")
    assert (found.scope, found.epoch, found.sequence, found.collapse_key) == ("couple", EPOCH, 7, "c")
    assert (found.attempt, found.ttl_s, found.age_s, found.held_for_stream, found.already_seen) == (
        1,
        70.0,
        0.0,
        False,
        False,
    )


async def test_claim_skips_rows_locked_by_another_worker(database: Database) -> None:
    await couple(database)
    await accept(database, *(message() for _ in range(4)))
    async with database.transaction() as one, database.transaction() as other:
        first = (await queue.claim(one, LEASE, 30.0, {APP: 2})).keys
        second = (await queue.claim(other, OTHER, 30.0, {APP: 10})).keys  # waits for nobody, or it would time out
        assert (len(first), len(second)) == (2, 2)
        assert not set(first) & set(second)
    assert await claim(database, LEASE) == []


async def test_lease_expired_fences_off_its_worker(database: Database, clock: FakeClock) -> None:
    await couple(database)
    sent = message()
    await accept(database, sent)
    stale = await claimed_one(database)
    await clock.advance(31)
    assert await rescue(database) == 1
    assert await finish(database, DeliveryUpdate(stale, DeliveryState.SENT, Reason.NONE)) == set()
    assert await shown(database, sent) == ["ann PENDING"]

    fresh = await claimed_one(database, OTHER)
    assert (fresh.delivery_id, fresh.attempt) == (stale.delivery_id, 2)
    assert await finish(database, DeliveryUpdate(stale, DeliveryState.DEAD, Reason.REJECTED)) == set()
    async with database.connection() as conn:
        assert await queue.release(conn, [LEASE]) == 0
        assert await queue.extend(conn, [LEASE], 30.0) == 0
    assert await finish(database, DeliveryUpdate(fresh, DeliveryState.SENT, Reason.NONE)) == {fresh.delivery_id}
    assert await finish(database, DeliveryUpdate(fresh, DeliveryState.DEAD, Reason.REJECTED)) == set()  # it is over
    assert await shown(database, sent) == ["ann SENT"]


async def test_lease_is_rescued_after_expiry_and_not_before(database: Database, clock: FakeClock) -> None:
    await couple(database)
    await accept(database, message())
    await claimed_one(database)
    await clock.advance(20)
    async with database.connection() as conn:
        assert await queue.extend(conn, [LEASE], 30.0) == 1
    await clock.advance(30)
    assert await rescue(database) == 0
    await clock.advance(0.1)
    assert await rescue(database) == 1
    assert (await claimed_one(database, OTHER)).attempt == 2  # the lost attempt counts: it may have been made


async def test_lease_expired_is_not_extended(database: Database, clock: FakeClock) -> None:
    await couple(database)
    await accept(database, message())
    await claimed_one(database)
    await clock.advance(30)
    async with database.connection() as conn:
        assert await queue.extend(conn, [LEASE], 30.0) == 0


async def test_lease_returned_is_due_at_once_and_counts_no_attempt(database: Database) -> None:
    await couple(database)
    await accept(database, message())
    await claimed_one(database)
    async with database.connection() as conn:
        assert await queue.release(conn, [LEASE, OTHER]) == 1
    assert (await claimed_one(database, OTHER)).attempt == 1


async def test_finish_writes_state_reason_and_due_time(database: Database, clock: FakeClock) -> None:
    await couple(database)
    await accept(database, message(), message(), message())
    retried, held, sent = await claim(database, LEASE)
    await finish(
        database,
        DeliveryUpdate(retried, DeliveryState.PENDING, Reason.UNAVAILABLE, due_in_s=20.0),
        DeliveryUpdate(held, DeliveryState.HELD, Reason.LIVE_STREAM, due_in_s=5.0, give_back_attempt=True),
        DeliveryUpdate(sent, DeliveryState.SENT, Reason.NONE, "projects/p/messages/\0one"),
    )
    found = {d.delivery_id: d for d in await deliveries(database)}
    assert [found[d.delivery_id].attempts for d in (retried, held, sent)] == [1, 0, 1]
    assert [(found[d.delivery_id].due_at - clock.now()).total_seconds() for d in (retried, held)] == [20, 5]
    assert (found[sent.delivery_id].sent_at, found[held.delivery_id].sent_at) == (clock.now(), None)
    message_id = await value_of(database, "SELECT provider_message_id FROM deliveries WHERE state = 'SENT'")
    assert message_id == "projects/p/messages/one"
    await clock.advance(5)
    again = await claimed_one(database)
    assert (again.delivery_id, again.held_for_stream) == (held.delivery_id, True)


async def test_delivery_age_counts_from_its_first_claim(database: Database, clock: FakeClock) -> None:
    await couple(database)
    await accept(database, message(ttl_s=86_400.0))
    await clock.advance(10_000)  # nor does it count that no worker was there
    first = await claimed_one(database)
    assert first.age_s == 0
    await finish(database, DeliveryUpdate(first, DeliveryState.PENDING, Reason.UNAVAILABLE, due_in_s=40.0))
    await clock.advance(50)
    assert (await claimed_one(database)).age_s == 50


async def trailing_pair(database: Database) -> None:
    """One wake-up for ann that was sent, and one that trails."""
    await add_device(database, "ann")
    await add_members(database, "couple", "ann")
    await accept(database, wake(1))
    leading = await claimed_one(database)
    await finish(database, DeliveryUpdate(leading, DeliveryState.SENT, Reason.NONE))
    await accept(database, wake(2))


async def test_dedupe_trailing_delivery_takes_the_newest_cursor(database: Database, clock: FakeClock) -> None:
    await trailing_pair(database)
    await accept(database, wake(3, epoch="epoch-2"))
    assert await claim(database, LEASE) == []
    await clock.advance(60)
    trailing = await claimed_one(database)
    assert (trailing.epoch, trailing.sequence, trailing.already_seen) == ("epoch-2", 3, False)
    follower, third = wake(4, epoch="epoch-2"), wake(5, epoch="epoch-2")
    await accept(database, follower, third)
    assert await shown(database, follower, third) == ["ann SCHEDULED TRAILING", "ann SUPPRESSED MERGED"]
    await clock.advance(60)
    assert [d.sequence for d in await claim(database, OTHER)] == [5]


async def test_dedupe_trailing_delivery_keeps_its_cursor_on_retry(database: Database, clock: FakeClock) -> None:
    await trailing_pair(database)
    await clock.advance(60)
    trailing = await claimed_one(database)
    await accept(database, wake(3))
    await finish(database, DeliveryUpdate(trailing, DeliveryState.PENDING, Reason.UNAVAILABLE, due_in_s=10.0))
    await clock.advance(10)
    again = await claimed_one(database)
    assert (again.delivery_id, again.sequence) == (trailing.delivery_id, 2)
    assert await value_of(database, "SELECT count(*) FROM deliveries WHERE reason = 'TRAILING'") == 1


async def test_seen_cursor_suppresses_the_wake_up_and_ends_its_window(database: Database, clock: FakeClock) -> None:
    await trailing_pair(database)
    await accept(database, wake(3))
    await mark_seen(database, 3)
    await clock.advance(60)
    trailing = await claimed_one(database)
    assert trailing.already_seen
    verdict = hold_or_end(trailing, False, START, RetryRule())
    assert verdict is not None
    assert (verdict.state, verdict.reason) == (DeliveryState.CANCELLED, Reason.ALREADY_SEEN)
    await finish(database, verdict)
    next_one = wake(4)
    await accept(database, next_one)
    assert await shown(database, next_one) == ["ann PENDING"]


@pytest.mark.parametrize(
    ("sequence", "epoch", "seen"), [(1, EPOCH, False), (2, EPOCH, True), (9, EPOCH, True), (9, "epoch-0", False)]
)
async def test_seen_cursor_matches_epoch_and_sequence(
    database: Database, sequence: int, epoch: str, seen: bool
) -> None:
    await add_device(database, "ann")
    await add_members(database, "couple", "ann")
    await accept(database, wake(2))
    await mark_seen(database, sequence, epoch=epoch)
    assert (await claimed_one(database)).already_seen is seen


async def test_dedupe_trailing_cursor_includes_what_is_accepted_during_its_claim(
    database: Database, clock: FakeClock
) -> None:
    await trailing_pair(database)
    await clock.advance(60)
    async with database.transaction() as conn:
        await accept_in(conn, [wake(3)])
        claiming = asyncio.ensure_future(claimed_one(database))
        blocked = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        await wait_until(lambda: value_of(database, blocked), what="the claim waits for the window")
    assert (await claiming).sequence == 3


async def test_dead_token_is_removed_unless_registered_again(database: Database, clock: FakeClock) -> None:
    await couple(database)
    await accept(database, message(Target(scope="couple")))
    dead = await claim(database, LEASE)
    await clock.advance(1)
    await add_device(database, "bob")  # the same token, newly registered
    async with database.connection() as conn:
        await dead_token_removal.remove_dead_tokens(conn, [one.token_use for one in dead])
    found = await rows_of(
        database, "SELECT user_id, token_state, registration_token, token_digest IS NULL FROM devices ORDER BY 1"
    )
    assert found == [("ann", "DEAD", None, True), ("bob", "ACTIVE", "token-of-bob-phone", False)]
    await add_device(database, "ann")
    assert await value_of(database, "SELECT count(*) FROM devices WHERE token_state = 'ACTIVE'") == 2


async def test_dead_token_removal_spares_another_token_of_the_device(database: Database) -> None:
    await couple(database)
    await accept(database, message())
    dead = await claim(database, LEASE)
    await add_device(database, "ann", token="a new one")
    async with database.connection() as conn:
        await dead_token_removal.remove_dead_tokens(conn, [one.token_use for one in dead])
    assert await value_of(database, "SELECT registration_token FROM devices WHERE user_id = 'ann'") == "a new one"


async def test_delivery_outlives_its_device(database: Database) -> None:
    await couple(database)
    sent = message()
    await accept(database, sent)
    async with database.connection() as conn:
        await conn.execute("DELETE FROM devices WHERE user_id = 'ann'")
    verdict = hold_or_end(await claimed_one(database), False, START, RetryRule())
    assert verdict is not None
    await finish(database, verdict)
    assert await shown(database, sent) == ["ann DEAD NO_TOKEN"]


async def test_dedupe_windows_are_deleted_an_hour_after_their_end(database: Database, clock: FakeClock) -> None:
    await couple(database)
    await accept(database, message(dedupe_key="k", dedupe_window_s=60.0))
    await accept(database, wake(1))
    await accept(database, wake(2, exclude_user_id="bob"))
    await clock.advance(3660)
    async with database.connection() as conn:
        assert (await dedupe_windows.forget(conn, 100)).gone == 0
    await clock.advance(1)
    async with database.connection() as conn:
        assert (await dedupe_windows.forget(conn, 100)).gone == 2
    assert await rows_of(database, "SELECT user_id, scope FROM dedupe_windows") == [("ann", "couple")]


async def test_lane_share_of_normal_is_one_in_five(database: Database) -> None:
    await couple(database)
    await accept(database, *(message(lane=lane) for lane in (Lane.NORMAL, Lane.HIGH) for _ in range(20)))
    lanes = [[d.lane for d in await claim(database, str(uuid.uuid4()), limit=10)] for _ in range(4)]
    assert [sum(lane is Lane.NORMAL for lane in taken) for taken in lanes] == [2, 2, 6, 10]


async def test_claim_limit_is_per_app(database: Database) -> None:
    for app_id in ("a", "b", "c"):
        registration = Registration(app_id, "ann", "phone", Platform.ANDROID, "t", "", "")
        await make_directory(database).register(registration, "test", by_user=False)
        await accept(database, *(message(app_id=app_id) for _ in range(30)))
    async with database.transaction() as conn:
        found = await queue.claim(conn, LEASE, 30.0, {"a": 3, "b": 50})
        taken = await queue.read_claimed(conn, LEASE, found.keys)
    assert Counter(d.app_id for d in taken) == {"a": 3, "b": 30}, "an app without room is left alone"
