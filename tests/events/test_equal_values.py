"""A value that its key has already is not written again by a later source time: only that time is raised."""

from __future__ import annotations

import pytest

from syncbeat_server.events.ingest import EventIngest
from syncbeat_server.events.publish import Publisher
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.sync.feed.writer import Append, AppendResult, append
from syncbeat_server.sync.policy.scope_prior import DEFAULT_PRIOR
from tests.events.test_publish import Told, call
from tests.events.test_source_time import SUPERSEDED, UNCHANGED, USERS, WRITTEN, at, stored
from tests.support.build import APP, Notifier, make_publisher
from tests.support.events import event, make_ingest
from tests.support.fake_clock import FakeClock
from tests.support.seed import couple, rows_of, value_of

pytestmark = [pytest.mark.store, pytest.mark.usefixtures("database", "clock")]


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
async def publisher(database: Database, clock: FakeClock, told: Told) -> Publisher:
    await couple(database)
    return make_publisher(database, clock, notifier=Notifier(told.scope_changed, told.deliveries_accepted))


@USERS
async def test_equal_value_raises_the_source_time_alone(
    database: Database, publisher: Publisher, told: Told, user_id: str | None
) -> None:
    await publisher.publish(call(at(-9, {"v": 1, "w": [1.0, "é"]}), user_id=user_id))
    told.changed.clear()
    before = await rows_of(database, "SELECT sequence, changed_at, xid::text FROM changes WHERE key = 'k'")
    same = call(at(-5, {"w": [1.0, "é"], "v": 1}), user_id=user_id, type="news", window=0.0)
    done = await publisher.publish(same)
    assert (done.outcomes, done.sequences, done.notification_id) == ((UNCHANGED,), (1,), "")
    assert [head.sequence for head in done.heads] == [1]
    assert (told.changed, told.deliveries) == ([], 0), "nobody has anything to read"
    assert await rows_of(database, "SELECT sequence, changed_at, xid::text FROM changes WHERE key = 'k'") == before
    assert (await stored(database))[1] == -5
    assert (await publisher.publish(call(at(-7, {"v": 7}), user_id=user_id))).outcomes == (SUPERSEDED,)
    assert (await publisher.publish(call(at(-4, {"v": 4}), user_id=user_id))).outcomes == (WRITTEN,)
    assert await stored(database) == ({"v": 4}, -4, 2)


async def test_equal_value_of_before_leaves_the_source_time(database: Database, publisher: Publisher) -> None:
    await publisher.publish(call(at(-5, 1)))
    assert (await publisher.publish(call(at(-9, 1)))).outcomes == (SUPERSEDED,)
    assert await stored(database) == (1, -5, 1)


async def test_equal_value_gets_the_source_time_that_it_had_not(database: Database, publisher: Publisher) -> None:
    await publisher.publish(call(at(None, {"v": 1})))
    assert (await publisher.publish(call(at(5, {"v": 1})))).outcomes == (UNCHANGED,)
    assert await stored(database) == ({"v": 1}, 5, 1)


async def test_later_deletion_of_what_is_deleted_is_written(database: Database, publisher: Publisher) -> None:
    await publisher.publish(call(at(-9)))
    assert (await publisher.publish(call(at(-5)))).outcomes == (WRITTEN,), "its tombstone is kept from now on"
    assert await stored(database) == (None, -5, 2)


@USERS
async def test_equal_values_of_one_call_go_by_what_is_before_each(
    database: Database, publisher: Publisher, user_id: str | None
) -> None:
    await publisher.publish(call(at(-9, 1), user_id=user_id))
    changes = [at(-8, 1), at(-7, 2), at(-6, 2), at(-5, 1), at(-4, 1), at(-3, 3, "new"), at(-2, 3, "new")]
    done = await publisher.publish(call(*changes, user_id=user_id))
    assert done.outcomes == (UNCHANGED, WRITTEN, UNCHANGED, WRITTEN, UNCHANGED, WRITTEN, UNCHANGED)
    assert done.sequences == (1, 2, 2, 3, 3, 4, 4)
    assert await stored(database) == (1, -4, 3)
    assert await stored(database, "new") == (3, -2, 4)


async def test_patch_after_an_equal_value_leaves_no_source_time(database: Database, publisher: Publisher) -> None:
    await publisher.publish(call(at(-9, {"a": 1})))
    done = await publisher.publish(call(at(-5, {"a": 1}), at(None, {"b": 2})))
    assert (done.outcomes, done.sequences) == ((UNCHANGED, None), (1, 2))
    assert await stored(database) == ({"a": 1, "b": 2}, None, 2)


@pytest.mark.parametrize("is_alone", [False, True], ids=["shared", "alone"])
async def test_event_with_an_equal_value_raises_its_source_time(
    database: Database, clock: FakeClock, is_alone: bool
) -> None:
    ingest: EventIngest = make_ingest(database, clock)
    payload = '"' + "x" * (70_000 if is_alone else 1) + '"'  # one too large to share a transaction
    for number, seconds in enumerate((-9.0, -5.0)):
        change = at(seconds, 1, scope="team")
        done = await ingest.ingest(event(f"e{number}", change, payload_json=payload))
        assert [head.sequence for head in done.result.heads] == [1]
    assert await stored(database) == (1, -5, 1)


async def test_equal_values_of_several_scopes_are_raised_apart(database: Database) -> None:
    async def appended(scope: str, seconds: float) -> object:
        calls = [Append(APP, (at(seconds, 1, scope=scope),))]
        async with database.transaction() as conn:
            (result,) = await append(conn, calls, lambda _: DEFAULT_PRIOR, create_scopes=True)
        assert isinstance(result, AppendResult)
        return result.outcomes

    for scope in ("one", "two"):
        assert await appended(scope, -9) == (WRITTEN,)
    assert await appended("two", -5) == (UNCHANGED,)
    times = "SELECT count(*) FROM changes WHERE source_time > syncbeat_now() - interval '6 seconds'"
    assert await value_of(database, times) == 1
