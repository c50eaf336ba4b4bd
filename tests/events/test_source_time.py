"""A change with a source time is written only if it is later than what its key has, on every path."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from syncbeat_server.errors import FieldReason, InvalidRequest, SequenceMismatch
from syncbeat_server.events.ingest import EventIngest
from syncbeat_server.events.model import Effects, EventState
from syncbeat_server.events.publish import Publish, Published, Publisher
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.sync.feed.writer import Append, AppendResult, append
from syncbeat_server.sync.model import NewChange, WriteOutcome
from syncbeat_server.sync.policy.scope_prior import DEFAULT_PRIOR
from syncbeat_server.sync.store import epochs, tombstones
from tests.events.test_publish import Told, call, together
from tests.support.build import APP, Notifier, make_publisher
from tests.support.events import event, make_ingest
from tests.support.fake_clock import START, FakeClock
from tests.support.seed import couple, rows_of, value_of

pytestmark = [pytest.mark.store, pytest.mark.usefixtures("database", "clock")]

WRITTEN, SUPERSEDED, UNCHANGED = WriteOutcome.WRITTEN, WriteOutcome.SUPERSEDED, WriteOutcome.UNCHANGED
USERS = pytest.mark.parametrize("user_id", [None, "ann"], ids=["service", "user"])


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
async def publisher(database: Database, clock: FakeClock, told: Told) -> Publisher:
    await couple(database)
    return make_publisher(database, clock, notifier=Notifier(told.scope_changed, told.deliveries_accepted))


@pytest.fixture
def ingest(database: Database, clock: FakeClock) -> EventIngest:
    return make_ingest(database, clock)


def at(seconds: float | None, value: object = None, key: str = "k", scope: str = "couple", **more: int) -> NewChange:
    """A value of a key, or its deletion, made so many seconds after noon; None: without a source time."""
    made_at = None if seconds is None else START + timedelta(seconds=seconds)
    patch = "" if value is None else json.dumps(value)
    return NewChange(scope, key, patch, value is None, source_time=made_at, **more)


async def stored(database: Database, key: str = "k") -> tuple[object, float | None, int]:
    """Return what a key has: its value, None for a tombstone; its source time in seconds after noon; its sequence."""
    ((text, made_at, sequence),) = await rows_of(
        database, "SELECT value::text, source_time, sequence FROM changes WHERE key = $1", key
    )
    value = None if text is None else json.loads(text)
    return value, None if made_at is None else (made_at - START).total_seconds(), sequence


@USERS
async def test_source_time_that_is_older_is_not_written(
    database: Database, publisher: Publisher, told: Told, user_id: str | None
) -> None:
    first = await publisher.publish(call(at(-5, {"v": 5}), user_id=user_id))
    told.changed.clear()
    older = await publisher.publish(call(at(-6, {"v": 6}), user_id=user_id))
    assert (first.sequences, first.outcomes) == ((1,), (WRITTEN,))
    assert (older.sequences, older.outcomes) == ((1,), (SUPERSEDED,))
    assert [head.sequence for head in older.heads] == [1]
    assert told.changed == [], "nothing has changed that anybody should read"
    assert await stored(database) == ({"v": 5}, -5, 1)
    newer = await publisher.publish(call(at(-4, {"w": 4}), user_id=user_id))
    assert (newer.sequences, newer.outcomes) == ((2,), (WRITTEN,))
    assert told.changed == [(APP, "couple")]
    assert await stored(database) == ({"w": 4}, -4, 2), "the whole value, and no patch of the one before"


@USERS
async def test_source_time_of_a_tombstone_counts(database: Database, publisher: Publisher, user_id: str | None) -> None:
    await publisher.publish(call(at(-5, 1), user_id=user_id))
    await publisher.publish(call(at(-3), user_id=user_id))
    late = await publisher.publish(call(at(-4, 4), user_id=user_id))
    assert (late.sequences, late.outcomes) == ((2,), (SUPERSEDED,))
    assert await stored(database) == (None, -3, 2)
    assert (await publisher.publish(call(at(-9), user_id=user_id))).outcomes == (SUPERSEDED,)
    assert (await publisher.publish(call(at(-2, 2), user_id=user_id))).outcomes == (WRITTEN,)
    assert await stored(database) == (2, -2, 3)


async def test_source_time_of_a_key_that_never_was_makes_a_tombstone(database: Database, publisher: Publisher) -> None:
    assert (await publisher.publish(call(at(-3)))).outcomes == (WRITTEN,)
    assert (await publisher.publish(call(at(-4, 4)))).outcomes == (SUPERSEDED,)
    assert await stored(database) == (None, -3, 1)


@USERS
async def test_change_without_source_time_is_made_when_it_is_published(
    database: Database, publisher: Publisher, clock: FakeClock, user_id: str | None
) -> None:
    await publisher.publish(call(at(100, 100), user_id=user_id))
    assert (await publisher.publish(call(at(None, {"a": 1}), user_id=user_id))).outcomes == ()
    assert await stored(database) == ({"a": 1}, None, 2), "it is written, whatever was there"
    assert (await publisher.publish(call(at(-1, -1), user_id=user_id))).outcomes == (SUPERSEDED,)
    await clock.advance(10)
    assert (await publisher.publish(call(at(5, 5), user_id=user_id))).outcomes == (WRITTEN,)
    assert await stored(database) == (5, 5, 3)


async def test_change_without_source_time_outlives_an_older_one_of_its_call_and_batch(
    database: Database, publisher: Publisher
) -> None:
    one_call = await publisher.publish(call(at(None, {"v": "now"}), at(-1000, {"v": "old"})))
    assert (one_call.sequences, one_call.outcomes) == ((1, 1), (None, SUPERSEDED))
    assert await stored(database) == ({"v": "now"}, None, 1)
    async with database.transaction() as conn:
        calls = [Append(APP, (at(None, {"v": "now"}, "b"),)), Append(APP, (at(-1000, {"v": "old"}, "b"),))]
        now, old = await append(conn, calls, lambda _: DEFAULT_PRIOR, create_scopes=True)
    assert isinstance(now, AppendResult)
    assert isinstance(old, AppendResult)
    assert (now.outcomes, old.outcomes) == ((None,), (SUPERSEDED,)), "the key was not there before this batch"
    assert (await stored(database, "b"))[:2] == ({"v": "now"}, None)


TIED = [{"a": 1}, {"a": 2}, {"a": "long"}, [], {}, "", "é", "z", 1, "1", 1.0, 10, 1e20, True, {"a": {"b": None}}, None]


@pytest.mark.parametrize("value", TIED, ids=repr)
async def test_equal_source_time_is_decided_whatever_comes_first(
    database: Database, publisher: Publisher, value: object
) -> None:
    for n, other in enumerate(TIED):
        one, two = f"one-{n}", f"two-{n}"
        await publisher.publish(call(at(-1, value, one), at(-1, other, two)))
        assert isinstance(await publisher.publish(call(at(-1, other, one), user_id="ann")), Published)
        await publisher.publish(call(at(-1, value, two)))
        together_in_one = await publisher.publish(call(at(-1, value, f"three-{n}"), at(-1, other, f"three-{n}")))
        texts = await rows_of(
            database,
            "SELECT value::text, deleted FROM changes WHERE key = ANY ($1)",
            [one, two, f"three-{n}"],
        )
        assert len(set(texts)) == 1, (value, other)
        again = await publisher.publish(call(at(-1, value, one)))
        same = await publisher.publish(call(at(-1, other, one)))
        assert {again.outcomes[0], same.outcomes[0]} <= {SUPERSEDED, UNCHANGED}
        assert UNCHANGED in (again.outcomes[0], same.outcomes[0])
        assert again.sequences == same.sequences, "neither has written anything"
        assert together_in_one.outcomes[0] is WRITTEN


async def test_equal_source_time_prefers_deletions_and_then_longer_values(
    database: Database, publisher: Publisher
) -> None:
    for value, outcome in (
        (1, WRITTEN),
        (2, WRITTEN),
        (1, SUPERSEDED),
        (10, WRITTEN),
        (2, SUPERSEDED),
        (None, WRITTEN),
    ):
        assert (await publisher.publish(call(at(-1, value)))).outcomes == (outcome,), value
    assert (await publisher.publish(call(at(-1, 1_000)))).outcomes == (SUPERSEDED,)
    assert (await publisher.publish(call(at(-1)))).outcomes == (UNCHANGED,)
    assert await stored(database) == (None, -1, 4)


@USERS
async def test_changes_of_one_key_in_a_call_go_by_their_source_times(
    database: Database, publisher: Publisher, user_id: str | None
) -> None:
    changes = [at(-5, 5), at(-3, 3), at(-4, 4), at(-3, 3), at(None, {"a": 1}), at(-2, 2), at(-1, 1, "other")]
    done = await publisher.publish(call(*changes, user_id=user_id))
    assert done.outcomes == (WRITTEN, WRITTEN, SUPERSEDED, UNCHANGED, None, SUPERSEDED, WRITTEN)
    assert done.sequences == (1, 2, 2, 2, 3, 3, 4)
    assert await stored(database) == ({"a": 1}, None, 3)
    assert await stored(database, "other") == (1, -1, 4)


async def test_patch_after_a_value_with_source_time_is_applied_to_it(database: Database, publisher: Publisher) -> None:
    await publisher.publish(call(at(None, {"old": True})))
    done = await publisher.publish(call(at(5, {"a": 1, "b": {"c": 1}}), at(None, {"b": {"d": 1}, "a": None})))
    assert (done.outcomes, done.sequences) == ((WRITTEN, None), (2, 3))
    assert await stored(database) == ({"b": {"c": 1, "d": 1}}, None, 3)


async def test_source_time_of_a_batch_of_calls(database: Database, publisher: Publisher) -> None:
    await publisher.publish(call("first"))
    results = await together(publisher, *(call(at(-n % 7, n, f"k{n % 3}")) for n in range(60)))
    assert all(isinstance(one, Published) for one in results)
    latest = {f"k{k}": max((-n % 7, n) for n in range(60) if n % 3 == k) for k in range(3)}
    for key, (made_at, value) in latest.items():
        assert (await stored(database, key))[:2] == (value, made_at)
    head = await value_of(database, "SELECT head FROM scopes WHERE scope = 'couple'")
    written = sum(one.outcomes == (WRITTEN,) for one in results if isinstance(one, Published))
    assert head == 1 + written, "no sequence is spent on what is not written"


@USERS
async def test_source_time_with_expected_sequence_wants_both(
    database: Database, publisher: Publisher, user_id: str | None
) -> None:
    assert (await publisher.publish(call(at(-5, 5, expected_sequence=0), user_id=user_id))).outcomes == (WRITTEN,)
    with pytest.raises(SequenceMismatch):
        await publisher.publish(call(at(-4, 4, expected_sequence=0), user_id=user_id))
    older = await publisher.publish(call(at(-6, 6, expected_sequence=1), user_id=user_id))
    assert older.outcomes == (SUPERSEDED,)
    assert (await publisher.publish(call(at(-4, 4, expected_sequence=1), user_id=user_id))).outcomes == (WRITTEN,)
    assert await stored(database) == (4, -4, 2)


@USERS
@pytest.mark.parametrize("seconds", [301.0, -2_000_000_000.0], ids=["future", "before 1970"])
async def test_source_time_out_of_range_is_refused(
    database: Database, publisher: Publisher, user_id: str | None, seconds: float
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await publisher.publish(call(at(1, 1), at(seconds, 2, "other"), user_id=user_id))
    ((path, _, reason),) = refused.value.violations
    assert (path, reason) == ("changes[1].source_time", FieldReason.OUT_OF_RANGE)
    assert await rows_of(database, "SELECT key FROM changes") == []
    assert (await publisher.publish(call(at(300, 1), user_id=user_id))).outcomes == (WRITTEN,)


@USERS
async def test_replay_answers_what_was_not_written(publisher: Publisher, user_id: str | None) -> None:
    await publisher.publish(call(at(-5, 5), user_id=user_id))
    mixed = call(at(-6, 6), at(-1, 1, "other"), at(-5, 5), at(None, 1, "third"), request_id="r", user_id=user_id)
    first = await publisher.publish(mixed)
    again = await publisher.publish(mixed)
    assert first.outcomes == (SUPERSEDED, WRITTEN, UNCHANGED, None)
    assert (first.replayed, again.replayed) == (False, True)
    assert (again.sequences, again.outcomes, again.heads) == (first.sequences, first.outcomes, first.heads)
    none = call(at(-6, 6), request_id="none", user_id=user_id)
    answers = [await publisher.publish(none) for _ in range(2)]
    assert [(one.outcomes, one.replayed) for one in answers] == [((SUPERSEDED,), False), ((SUPERSEDED,), True)]


@USERS
async def test_trigger_wakes_for_scopes_in_which_something_was_written(
    database: Database, publisher: Publisher, told: Told, user_id: str | None
) -> None:
    await couple(database, "pair")

    def wakes(*changes: NewChange) -> Publish:
        return call(*changes, user_id=user_id, type="news", window=0.0)

    await publisher.publish(wakes(at(-5, 5)))
    old = await publisher.publish(wakes(at(-6, 6)))
    assert old.notification_id == ""
    both = await publisher.publish(wakes(at(-6, 6), at(-6, 6, scope="pair")))
    assert (both.outcomes, bool(both.notification_id)) == ((SUPERSEDED, WRITTEN), True)
    woken = await rows_of(
        database, "SELECT DISTINCT scope FROM deliveries WHERE notification_id = $1::uuid", both.notification_id
    )
    assert woken == [("pair",)]
    assert told.deliveries == 2


async def test_source_time_of_an_event_goes_by_the_same_order(database: Database, ingest: EventIngest) -> None:
    for n, (seconds, alone) in enumerate([(-5.0, False), (-6.0, False), (-7.0, True), (-4.0, True)]):
        one = at(seconds, n, scope="team")
        effects = Effects(changes=(one,))
        if alone:  # a payload that is too large to share a transaction
            done = await ingest.ingest(event(f"e{n}", effects=effects, payload_json=json.dumps("x" * 70_000)))
        else:
            done = await ingest.ingest(event(f"e{n}", effects=effects))
        assert done.receipt.state is EventState.ACCEPTED
        assert [head.sequence for head in done.result.heads] == [1 if n < 3 else 2]
    assert await stored(database) == (3, -4, 2)
    with pytest.raises(InvalidRequest) as refused:
        await ingest.ingest(event("late", at(301, 1, scope="team")))
    assert refused.value.violations[0].path == "effects.changes[0].source_time"
    assert await rows_of(database, "SELECT event_id FROM events WHERE event_id = 'late'") == []


async def test_batch_of_events_that_writes_nothing_is_recorded(database: Database, ingest: EventIngest) -> None:
    await ingest.ingest(event("e", at(-1, 1, scope="team")))
    results = [await ingest.ingest(event(f"e{n}", at(-2, n, scope="team"))) for n in range(3)]
    assert {one.receipt.state for one in results} == {EventState.ACCEPTED}
    assert await value_of(database, "SELECT count(*) FROM events") == 4
    assert await stored(database) == (1, -1, 1)


async def test_source_time_of_a_forgotten_tombstone_holds_nothing_back(
    database: Database, publisher: Publisher, clock: FakeClock
) -> None:
    await publisher.publish(call(at(-3)))
    await clock.advance(20 * 86_400)
    async with database.connection() as conn:
        assert (await tombstones.remove_old(conn, 30.0, 10)).gone == 0
    assert (await publisher.publish(call(at(-4, 4)))).outcomes == (SUPERSEDED,)
    await clock.advance(12 * 86_400)
    async with database.connection() as conn:
        assert (await tombstones.remove_old(conn, 30.0, 10)).gone == 1
    assert (await publisher.publish(call(at(-4, 4)))).outcomes == (WRITTEN,)


async def test_source_times_outlive_a_new_epoch(database: Database, publisher: Publisher) -> None:
    before = await publisher.publish(call(at(-3, 3)))
    async with database.transaction() as conn:
        assert await epochs.renew(conn, [(APP, "couple")]) == 1
    after = await publisher.publish(call(at(-4, 4)))
    assert after.outcomes == (SUPERSEDED,)
    assert after.heads[0].epoch != before.heads[0].epoch
