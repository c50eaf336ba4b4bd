"""Accepting notifications: a delivery for each device, at most one in a window, and nothing that is not counted."""

from __future__ import annotations

import random
import uuid
from itertools import pairwise

import pytest

from syncbeat_server.push.model import (
    Acceptance,
    DeliveryFilter,
    DeliveryState,
    DeliveryUpdate,
    Kind,
    NewNotification,
    Reason,
    Target,
)
from syncbeat_server.push.store import dedupe_windows, notifications, queue
from syncbeat_server.storage.postgres.database import Database
from tests.support.build import APP, make_directory
from tests.support.fake_clock import START, FakeClock
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
    states,
    wake,
)

pytestmark = [pytest.mark.store, pytest.mark.usefixtures("database", "clock")]


async def test_accept_reaches_every_device_and_counts_tokenless_as_suppressed(
    database: Database,
) -> None:
    await add_device(database, "ann", "phone")
    await add_device(database, "ann", "tablet")
    await add_device(database, "ann", "laptop", token="")
    await add_device(database, "bob", "phone")
    sent = message()
    (accepted,) = await accept(database, sent)
    assert accepted == Acceptance(sent.notification_id, delivery_count=3, suppressed_count=1)
    by_device = {d.device_id: (d.state, d.reason) for d in await deliveries(database)}
    assert by_device == {
        "phone": (DeliveryState.PENDING, Reason.NONE),
        "tablet": (DeliveryState.PENDING, Reason.NONE),
        "laptop": (DeliveryState.SUPPRESSED, Reason.NO_TOKEN),
    }


async def test_accept_of_overlapping_targets_makes_one_delivery_per_device(database: Database) -> None:
    await couple(database)
    sent = message(Target(user_id="ann"), Target(user_id="ann", device_id="phone"), Target(user_id="nobody"))
    (accepted,) = await accept(database, sent)
    assert accepted.delivery_count == 1
    assert await shown(database, sent) == ["ann PENDING"]


async def test_accept_for_a_scope_reaches_members_except_excluded(database: Database) -> None:
    await couple(database)
    await add_device(database, "bob", "tablet")
    await add_device(database, "eve")
    await add_members(database, "another", "eve")
    everyone = wake(1)
    no_ann = wake(2, type="b", exclude_user_id="ann")
    no_phones = wake(3, type="c", exclude_device_id="phone")
    counts = [a.delivery_count for a in await accept(database, everyone, no_ann, no_phones)]
    assert counts == [3, 2, 1]
    assert {(d.user_id, d.device_id) for d in await deliveries(database, no_phones)} == {("bob", "tablet")}


async def test_accept_reaches_devices_of_its_app_only(database: Database) -> None:
    await couple(database)
    (accepted,) = await accept(database, message(app_id="other"))
    assert accepted.delivery_count == 0


async def test_accept_of_nothing_writes_nothing(database: Database) -> None:
    assert await accept(database) == []
    (accepted,) = await accept(database, message(Target(scope="no such scope")))
    assert (accepted.delivery_count, accepted.suppressed_count) == (0, 0)


async def test_dedupe_window_sends_the_first_and_suppresses_repeats(database: Database, clock: FakeClock) -> None:
    await couple(database)

    async def send(**fields: float) -> list[str]:
        sent = message(dedupe_key="goal", **{"dedupe_window_s": 60.0, **fields})
        await accept(database, sent)
        return await shown(database, sent)

    assert await send() == ["ann PENDING"]
    await clock.advance(59.9)
    assert await send() == ["ann SUPPRESSED DUPLICATE"]
    await clock.advance(0.1)  # a repeat does not make the window longer
    assert await send() == ["ann PENDING"]
    assert await send() == ["ann SUPPRESSED DUPLICATE"]


async def test_dedupe_window_is_per_device_key_scope_and_kind(database: Database) -> None:
    await couple(database)
    await add_members(database, "chat", "ann")
    first = message(dedupe_key="sync:news")
    distinct = [
        first,
        message(Target(user_id="bob"), dedupe_key="sync:news"),
        message(dedupe_key="other"),
        message(Target(scope="couple", exclude_user_id="bob"), dedupe_key="sync:news"),
        wake(1, "couple", exclude_user_id="bob"),
        wake(1, "chat"),
        message(),
        message(),
    ]
    for one in distinct:
        (accepted,) = await accept(database, one)
        assert (accepted.delivery_count, accepted.suppressed_count) == (1, 0), one


async def test_dedupe_window_of_zero_length_suppresses_nothing(database: Database) -> None:
    await couple(database)
    together = [message(dedupe_key="k", dedupe_window_s=0.0) for _ in range(3)]
    assert [a.suppressed_count for a in await accept(database, *together)] == [0, 0, 0]
    woken = [wake(n, window=0.0) for n in (1, 2)]
    assert [a.suppressed_count for a in await accept(database, *woken)] == [0, 0]


async def test_dedupe_window_keeps_one_trailing_wake_up_and_merges_the_rest(
    database: Database, clock: FakeClock
) -> None:
    await add_device(database, "ann")
    await add_members(database, "couple", "ann")
    calls = [wake(sequence) for sequence in (1, 2, 3, 4)]
    for call in calls:
        await accept(database, call)
        await clock.advance(10)
    assert await shown(database, *calls) == [
        "ann PENDING",
        "ann SCHEDULED TRAILING",
        "ann SUPPRESSED MERGED",
        "ann SUPPRESSED MERGED",
    ]
    (trailing,) = await deliveries(database, calls[1])
    assert (trailing.due_at - START).total_seconds() == 60
    assert await rows_of(database, "SELECT epoch, sequence FROM dedupe_windows") == [(EPOCH, 4)]


async def test_dedupe_trailing_delivery_that_is_late_still_merges(database: Database, clock: FakeClock) -> None:
    await couple(database)
    early, trailing, late = wake(1), wake(2), wake(3)
    await accept(database, early)
    await accept(database, trailing)
    await clock.advance(3600)  # no worker was there to claim it
    await accept(database, late)
    assert await shown(database, late) == ["ann SUPPRESSED MERGED", "bob SUPPRESSED MERGED"]
    assert await rows_of(database, "SELECT DISTINCT sequence FROM dedupe_windows") == [(3,)]


async def outcome(database: Database, calls: list[NewNotification]) -> tuple[list[str], list[tuple[object, ...]]]:
    """Return what the calls came to, by their numbers instead of their ids."""
    number = {call.notification_id: index for index, call in enumerate(calls)}
    found = await rows_of(
        database,
        """SELECT user_id, device_id, dedupe_key, scope, opened_by::text, trailed_by::text, epoch, sequence,
                  window_until, duration FROM dedupe_windows ORDER BY 1, 2, 3, 4""",
    )
    windows = [(*row[:4], number.get(row[4]), number.get(row[5]), *row[6:]) for row in found]
    due = [f"{d.due_at} {d.expires_at}" for call in calls for d in await deliveries(database, call)]
    return [*await shown(database, *calls), *sorted(due)], windows


@pytest.mark.parametrize("seed", range(4))
async def test_accept_in_one_batch_equals_one_by_one(database: Database, clock: FakeClock, seed: int) -> None:
    dice = random.Random(seed)
    await couple(database)
    await add_device(database, "ann", "old", token="")

    def calls() -> list[NewNotification]:
        rolls = random.Random(seed + 100)
        made: list[NewNotification] = []
        for sequence in range(12):
            window = rolls.choice((0.0, 30.0, 60.0))
            if rolls.random() < 0.5:
                made.append(wake(sequence, type=rolls.choice("ab"), window=window))
            else:
                made.append(message(dedupe_key=rolls.choice("ab"), dedupe_window_s=window))
        return made

    before = [wake(0, type=dice.choice("ab"), window=dice.choice((20.0, 60.0))) for _ in range(dice.randrange(3))]
    for one in before:
        await accept(database, one)
    await clock.advance(30)
    singly = calls()
    kept = await rows_of(database, "SELECT * FROM dedupe_windows")
    for one in singly:
        await accept(database, one)
    expected = await outcome(database, singly)
    await _restore_windows(database, kept)
    together = calls()
    await accept(database, *together)
    assert await outcome(database, together) == expected


async def _restore_windows(database: Database, kept: list[tuple[object, ...]]) -> None:
    async with database.transaction() as conn:
        await conn.execute("DELETE FROM dedupe_windows")
        for row in kept:
            places = ", ".join(f"${index + 1}" for index in range(len(row)))
            await conn.execute(f"INSERT INTO dedupe_windows VALUES ({places})", *row)


async def test_accepted_notification_reports_its_counts(database: Database) -> None:
    await couple(database)
    await add_device(database, "ann", "old", token="")
    sent = message(Target(scope="couple"), dedupe_key="k", collapse_key="c", critical=True)
    await accept(database, sent)
    async with database.connection() as conn:
        found = await notifications.find_notification(conn, APP, sent.notification_id)
        assert await notifications.find_notification(conn, "other", sent.notification_id) is None
    assert found is not None
    assert (found.kind, found.content, found.dedupe_key, found.collapse_key) == (Kind.MESSAGE, sent.content, "k", "c")
    assert found.counts == {DeliveryState.PENDING: 2, DeliveryState.SUPPRESSED: 1}


async def test_pagination_of_deliveries_keeps_creation_order(database: Database) -> None:
    await couple(database)
    for _ in range(3):
        await accept(database, message(Target(scope="couple")))
    everything = [d.delivery_id for d in await deliveries(database)]
    found: list[str] = []
    async with database.connection() as conn:
        while page := await notifications.list_deliveries(conn, APP, DeliveryFilter(), found[-1] if found else None, 2):
            found += [d.delivery_id for d in page]
        wanted = DeliveryFilter(user_id="ann", device_id="phone", state=DeliveryState.PENDING)
        anns = await notifications.list_deliveries(conn, APP, wanted, None, 10)
    assert found == everything
    assert len(everything) == 6
    assert all(before < after for before, after in pairwise(everything))
    assert [d.user_id for d in anns] == ["ann"] * 3


async def test_token_move_takes_no_deliveries_of_the_old_owner_along(database: Database) -> None:
    await add_device(database, "ann", token="shared")
    await add_members(database, "couple", "ann")
    waiting, trailing = wake(1), wake(2)
    await accept(database, waiting)
    await accept(database, trailing)
    await add_device(database, "bob", token="shared")
    assert await shown(database, waiting, trailing) == ["ann CANCELLED DEVICE_GONE"] * 2
    assert await rows_of(database, "SELECT * FROM dedupe_windows") == []
    late = message()
    await accept(database, late)
    assert await shown(database, late) == ["ann SUPPRESSED NO_TOKEN"]


class Story:
    """Random operations of callers and of workers; what was accepted is counted along."""

    def __init__(self, database: Database, clock: FakeClock, dice: random.Random) -> None:
        self.database, self.clock, self.dice = database, clock, dice
        self.accepted = 0
        self.sequence = 0

    async def step(self) -> None:
        """One operation."""
        one = self.dice.choice((self.send, self.send, self.wake, self.work, self.work, self.lose, self.move, self.see))
        await one()

    async def send(self) -> None:
        calls = [
            message(
                Target(scope="couple"), dedupe_key=self.dice.choice(("", "k")), ttl_s=self.dice.choice((5.0, 900.0))
            )
            for _ in range(self.dice.randrange(1, 4))
        ]
        self.accepted += sum(a.delivery_count for a in await accept(self.database, *calls))

    async def wake(self) -> None:
        self.sequence += 1
        calls = [wake(self.sequence, window=20.0) for _ in range(self.dice.randrange(1, 4))]
        self.accepted += sum(a.delivery_count for a in await accept(self.database, *calls))

    async def work(self) -> None:
        lease = uuid.UUID(int=self.dice.getrandbits(128))
        taken = await claim(self.database, str(lease), limit=self.dice.randrange(1, 8), lease_s=15.0)
        ends = (DeliveryState.SENT, DeliveryState.PENDING, DeliveryState.HELD, DeliveryState.DEAD)
        done = [DeliveryUpdate(d, self.dice.choice(ends), Reason.NONE, due_in_s=5.0) for d in taken[::2]]
        async with self.database.connection() as conn:
            await queue.finish(conn, done)  # the others are left behind, as by a crash

    async def lose(self) -> None:
        await self.clock.advance(self.dice.choice((1.0, 10.0, 30.0)))
        async with self.database.connection() as conn:
            await queue.rescue(conn, 100)
            await dedupe_windows.forget(conn, 100)

    async def move(self) -> None:
        user = self.dice.choice(("ann", "bob"))
        if self.dice.random() < 0.3:
            await make_directory(self.database).unregister(APP, user, "phone", by_user=False)
        await add_device(self.database, user, token=self.dice.choice((None, "shared")))

    async def see(self) -> None:
        if self.sequence:
            await mark_seen(self.database, self.sequence, self.dice.choice(("ann", "bob")))


@pytest.mark.parametrize("seed", range(3))
async def test_accepted_count_equals_the_sum_of_states(database: Database, clock: FakeClock, seed: int) -> None:
    await couple(database)
    story = Story(database, clock, random.Random(seed))
    for _ in range(40):
        await story.step()
        assert sum((await states(database)).values()) == story.accepted
    # Whatever still waits comes to an end: nothing is stuck.
    for _ in range(10):
        await clock.advance(900)
        async with database.connection() as conn:
            await queue.rescue(conn, 1000)
        taken = await claim(database, str(uuid.uuid4()), limit=1000)
        async with database.connection() as conn:
            await queue.finish(conn, [DeliveryUpdate(d, DeliveryState.SENT, Reason.NONE) for d in taken])
    left = await states(database)
    assert not {"PENDING", "HELD", "SCHEDULED", "IN_FLIGHT"} & set(left), left
    assert sum(left.values()) == story.accepted > 20
    assert await rows_of(database, "SELECT * FROM dedupe_windows WHERE trailed_by IS NOT NULL") == []
