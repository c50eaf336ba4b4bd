"""Events whose effects fail are recorded with the cause, leave nothing else behind, and are retried."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from syncbeat_server.directory.model import Member, MemberRole
from syncbeat_server.errors import AccessDenied, DeadlineExceeded, NotFound
from syncbeat_server.events.ingest import EventIngest
from syncbeat_server.events.model import (
    Effects,
    EventRule,
    EventState,
    MemberEffect,
    NotificationEffect,
    TierEffect,
    UserAction,
    UserEffect,
)
from syncbeat_server.events.policy.retries import retry_delay_s
from syncbeat_server.events.retry_worker import EventRetryWorker
from syncbeat_server.events.store import event_rows
from syncbeat_server.push.model import Content, Target
from syncbeat_server.storage.postgres.database import Database
from tests.docs.pages import ROOT, blocks_of
from tests.support.build import APP
from tests.support.events import Counts, change, event, feed_value, key_of, make_ingest, stored
from tests.support.fake_clock import START, FakeClock
from tests.support.seed import add_members

pytestmark = [pytest.mark.store, pytest.mark.usefixtures("database", "clock")]

ACCEPTED, DUPLICATE, STALE, FAILED = EventState.ACCEPTED, EventState.DUPLICATE, EventState.STALE, EventState.FAILED
TO_A_SCOPE = NotificationEffect(Content(title="t"), (Target(scope="later"),))
WAITS_FOR_SCOPE = Effects(changes=(change(1),), notification=TO_A_SCOPE)


@pytest.fixture
def counts() -> Counts:
    return Counts()


@pytest.fixture
def ingest(database: Database, clock: FakeClock, counts: Counts) -> EventIngest:
    return make_ingest(database, clock, counts=counts, give_up_s=60.0, longest_retry_s=4.0)


def worker(database: Database, ingest: EventIngest, clock: FakeClock) -> EventRetryWorker:
    return EventRetryWorker(database, ingest, clock, lambda seconds: None)


@pytest.mark.parametrize(
    ("effects", "cause"),
    [
        (WAITS_FOR_SCOPE, "NOT_FOUND"),
        (Effects(changes=(change(1), change(1, "k", expected_sequence=9))), "SEQUENCE_MISMATCH"),
        (Effects(changes=(change(1), change('"\\u0000"', "k"))), "INVALID_FIELD"),
        (Effects(users=(UserEffect("ann", UserAction.ENSURE),), tiers=(TierEffect("ann", "gold"),)), "INVALID_FIELD"),
        (
            Effects(
                users=(UserEffect("ann", UserAction.ENSURE),),
                members=(MemberEffect("a", (Member("a", "ann", MemberRole.READER),)),),
                changes=(change(1, "k", expected_sequence=9),),
            ),
            "SEQUENCE_MISMATCH",
        ),
    ],
)
async def test_failed_effects_leave_nothing_but_the_record(
    ingest: EventIngest, database: Database, effects: Effects, cause: str
) -> None:
    answer = await ingest.ingest(event("e1", effects=effects))

    assert (answer.receipt.state, answer.receipt.event_state) == (FAILED, FAILED)
    assert answer.receipt.failure.startswith(cause)
    found = await stored(database, "e1")
    assert (found.state, found.attempts, found.failure) == (FAILED, 1, answer.receipt.failure)
    assert found.next_attempt_at == START + timedelta(seconds=1)
    async with database.connection() as conn:
        for table in ("changes", "users", "scope_members", "scopes", "notifications", "event_order_heads"):
            assert await conn.fetchval(f"SELECT count(*) FROM {table}") == 0, table  # of the list above


FULL = {
    "2,000 scopes of a user": (
        ["'team-' || n", "'ann'"],
        2_000,
        (
            MemberEffect("team-1999", remove=("ann",)),
            MemberEffect("a", (Member("a", "ann", MemberRole.READER),)),
        ),
    ),
    "10,000 members of a scope": (
        ["'team'", "'user-' || n"],
        10_000,
        (MemberEffect("team", (Member("team", "ann", MemberRole.READER),), ("user-7",)),),
    ),
}


@pytest.mark.parametrize(("columns", "rows", "swap"), FULL.values(), ids=FULL)
async def test_members_are_swapped_at_their_limit(
    ingest: EventIngest, database: Database, columns: list[str], rows: int, swap: tuple[MemberEffect, ...]
) -> None:
    scope, member = columns
    made = f"FROM generate_series(1, {rows}) n"
    async with database.transaction() as conn:
        await conn.execute(
            f"INSERT INTO scopes (app_id, scope, created_at) SELECT DISTINCT 'default', {scope}, now() {made}"
        )
        await conn.execute(
            "INSERT INTO scope_members (app_id, scope, user_id, role, added_at)"
            f" SELECT 'default', {scope}, {member}, 'READER', now() {made}"
        )

    answer = await ingest.ingest(event("e1", effects=Effects(members=swap)))

    assert (answer.receipt.state, answer.receipt.failure) == (ACCEPTED, "")


async def test_failing_event_does_not_hinder_others_of_its_batch(ingest: EventIngest, database: Database) -> None:
    bad = event("bad", change(1, "k", expected_sequence=9), subject="bob")
    worse = event("worse", change('"\\u0000"', "k"), subject="carol")

    answers = await asyncio.gather(
        *(ingest.ingest(one) for one in (event("e1", change(1)), bad, worse, event("e2", change(2))))
    )

    assert [one.receipt.state for one in answers] == [ACCEPTED, FAILED, FAILED, ACCEPTED]
    assert await feed_value(database) == {"v": 2}


async def test_failed_event_is_retried_by_redelivery(ingest: EventIngest, database: Database) -> None:
    failed = event("e1", effects=WAITS_FOR_SCOPE)
    await ingest.ingest(failed)
    again = await ingest.ingest(failed)
    await add_members(database, "later", "ann")
    third = await ingest.ingest(failed)
    fourth = await ingest.ingest(failed)

    assert [one.receipt.state for one in (again, third, fourth)] == [FAILED, ACCEPTED, DUPLICATE]
    assert fourth.receipt.event_state is ACCEPTED
    assert fourth.result == third.result
    assert third.result.notification_id
    found = await stored(database, "e1")
    assert (found.attempts, found.duplicate_count, found.failure, found.next_attempt_at) == (3, 3, "", None)


async def test_failed_event_is_retried_by_hand(ingest: EventIngest, database: Database) -> None:
    await ingest.ingest(event("e1", effects=WAITS_FOR_SCOPE))
    assert (await ingest.retry(key_of("e1"), "service:test")).receipt.state is FAILED
    await add_members(database, "later", "ann")

    answers = [await ingest.retry(key_of("e1"), "service:test") for _ in range(2)]

    assert [one.receipt.state for one in answers] == [ACCEPTED, ACCEPTED]
    assert (await stored(database, "e1")).attempts == 3
    assert await feed_value(database) == {"v": 1}
    with pytest.raises(NotFound):
        await ingest.retry(key_of("unknown"), "service:test")


async def test_effects_on_record_want_their_methods_from_whoever_retries_them(
    ingest: EventIngest, database: Database
) -> None:
    await ingest.ingest(event("e1", effects=WAITS_FOR_SCOPE))
    await add_members(database, "later", "ann")
    narrow = frozenset({"SetUserTier"})
    # As after a change of a source's mapping: other effects, and the same content.
    same = replace(event("e1", effects=WAITS_FOR_SCOPE), effects=Effects(tiers=(TierEffect("ann", "pro"),)))

    with pytest.raises(AccessDenied, match="PublishChanges, SendNotification"):
        await ingest.ingest(replace(same, methods=narrow))
    with pytest.raises(AccessDenied, match="PublishChanges, SendNotification"):
        await ingest.retry(key_of("e1"), "service:test", narrow)

    assert ((await stored(database, "e1")).attempts, await feed_value(database)) == (1, None)
    wide = frozenset({"PublishChanges", "SendNotification"})
    assert (await ingest.retry(key_of("e1"), "service:test", wide)).receipt.state is ACCEPTED
    assert (await ingest.retry(key_of("e1"), "service:test", narrow)).receipt.state is ACCEPTED, "nothing is done"


async def test_failed_event_becomes_stale_once_a_later_one_was_accepted(
    ingest: EventIngest, database: Database
) -> None:
    await ingest.ingest(event("e1", effects=WAITS_FOR_SCOPE, at=START - timedelta(hours=2)))
    later = await ingest.ingest(event("e2", change(2), at=START - timedelta(hours=1)))
    await add_members(database, "later", "ann")

    answer = await ingest.retry(key_of("e1"), "service:test")

    assert (later.receipt.state, answer.receipt.state) == (ACCEPTED, STALE)
    assert await feed_value(database) == {"v": 2}
    assert (await stored(database, "e1")).next_attempt_at is None


async def test_failed_event_does_not_hold_back_an_earlier_one(ingest: EventIngest) -> None:
    await ingest.ingest(event("e2", effects=WAITS_FOR_SCOPE, at=START - timedelta(hours=1)))

    answer = await ingest.ingest(event("e1", change(1), at=START - timedelta(hours=2)))

    assert answer.receipt.state is ACCEPTED


async def test_worker_retries_after_1_2_4_seconds_until_the_deadline(
    ingest: EventIngest, database: Database, clock: FakeClock, counts: Counts
) -> None:
    retries = worker(database, ingest, clock)
    await ingest.ingest(event("e1", effects=WAITS_FOR_SCOPE))
    attempts = []
    for _ in range(70):
        await clock.advance(1.0)
        if await retries.retry_due():
            attempts.append((clock.now() - START).total_seconds())

    assert attempts == [1.0, 3.0, 7.0, *(7.0 + 4.0 * n for n in range(1, 14))]
    assert counts.again[-1] == (FAILED, True)
    assert not any(given_up for _, given_up in counts.again[:-1])
    found = await stored(database, "e1")
    assert (found.state, found.next_attempt_at) == (FAILED, None)


async def test_effects_never_outlive_the_deadline(ingest: EventIngest, database: Database, clock: FakeClock) -> None:
    failed = event("e1", effects=WAITS_FOR_SCOPE)
    await ingest.ingest(failed)
    await add_members(database, "later", "ann")
    await clock.advance(60.0)

    answers = [await ingest.retry(key_of("e1"), "service:test"), await ingest.ingest(failed)]

    assert [one.receipt.state for one in answers] == [FAILED, DUPLICATE]
    assert [one.receipt.event_state for one in answers] == [FAILED, FAILED]
    assert await worker(database, ingest, clock).retry_due() == 0
    async with database.connection() as conn:
        assert await conn.fetchval("SELECT count(*) FROM changes") == 0


async def test_retry_that_lasts_beyond_the_deadline_ends_with_it(
    ingest: EventIngest, database: Database, clock: FakeClock
) -> None:
    await add_members(database, "team", "bob")
    await ingest.ingest(event("e1", effects=WAITS_FOR_SCOPE))
    await add_members(database, "later", "ann")
    await clock.advance(59.7)

    async with database.transaction() as conn:
        await conn.execute("SELECT FROM scopes WHERE scope = 'team' FOR UPDATE")
        with pytest.raises(DeadlineExceeded):
            await ingest.retry(key_of("e1"), "service:test")

    assert (await stored(database, "e1")).state is FAILED
    assert await feed_value(database) is None


async def test_due_events_are_claimed_by_one_worker_until_its_lease_ends(
    ingest: EventIngest, database: Database, clock: FakeClock
) -> None:
    await ingest.ingest(event("e1", effects=WAITS_FOR_SCOPE))
    await clock.advance(1.0)

    async def claim() -> int:
        async with database.transaction() as conn:
            return len(await event_rows.claim_due(conn, 10, 5.0))

    assert sorted(await asyncio.gather(claim(), claim())) == [0, 1]
    await clock.advance(5.0)
    assert await claim() == 1


async def test_worker_runs_and_tells_the_age_of_the_oldest_failed_event(
    ingest: EventIngest, database: Database, clock: FakeClock
) -> None:
    ages: list[float] = []
    retries = EventRetryWorker(database, ingest, clock, ages.append)
    await ingest.ingest(event("e1", effects=WAITS_FOR_SCOPE))
    task = asyncio.ensure_future(retries.run())
    try:
        await clock.advance(16.0)
        await add_members(database, "later", "ann")
        await clock.advance(16.0)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    assert (await stored(database, "e1")).state is ACCEPTED
    assert ages[0] == 0.0
    assert 15.0 <= ages[1] <= 16.0
    assert ages[-1] == 0.0


@pytest.mark.parametrize(
    ("attempts", "delay_s"), [(1, 1.0), (2, 2.0), (3, 4.0), (4, 8.0), (9, 256.0), (10, 300.0), (10_000, 300.0)]
)
def test_retry_delay_doubles_up_to_the_longest(attempts: int, delay_s: float) -> None:
    assert retry_delay_s(EventRule(), attempts) == delay_s


async def test_retries_are_stopped_as_the_operators_page_says(
    ingest: EventIngest, database: Database, clock: FakeClock, counts: Counts
) -> None:
    (sql,) = [block.text for block in blocks_of(ROOT / "docs/operations.md") if block.language == "sql"]
    failing = event("e1", effects=WAITS_FOR_SCOPE)
    await ingest.ingest(failing)
    await ingest.ingest(event("e2", effects=WAITS_FOR_SCOPE))
    await add_members(database, "later", "ann")
    async with database.connection() as conn:
        assert await conn.execute(sql.replace("'default'", f"'{APP}'")) == "UPDATE 1"
    await clock.advance(2.0)
    await worker(database, ingest, clock).retry_due()

    assert ((await stored(database, "e1")).state, (await stored(database, "e1")).next_attempt_at) == (FAILED, None)
    assert (await stored(database, "e2")).state is ACCEPTED
    assert sorted(counts.again) == [(ACCEPTED, False), (FAILED, True)]
    assert (await ingest.ingest(failing)).receipt.state is DUPLICATE
    assert (await ingest.retry(key_of("e1"), "ann")).receipt.state is FAILED
