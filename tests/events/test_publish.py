"""Publishing: gapless sequences, one answer a request, and the wake-ups that belong to the change."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import defaultdict
from dataclasses import replace
from typing import Any

import pytest

from syncbeat_server.directory.model import MemberRole
from syncbeat_server.errors import (
    AccessDenied,
    InvalidRequest,
    RequestIdReused,
    RequestInFlight,
    SequenceMismatch,
)
from syncbeat_server.events.publish import Publish, Published, Publisher
from syncbeat_server.events.trigger import Trigger
from syncbeat_server.push.model import Content
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.sync.model import NewChange
from tests.support.build import APP, Notifier, make_publisher
from tests.support.databases import DatabaseUrls, open_database
from tests.support.fake_clock import FakeClock
from tests.support.process_rules import PATIENT
from tests.support.seed import add_device, add_members, couple, deliveries, rows_of, states, value_of

pytestmark = [pytest.mark.store, pytest.mark.usefixtures("database", "clock")]


class Told:
    """Records what the rest of the process is told after a commit."""

    def __init__(self) -> None:
        self.changed: list[tuple[str, str]] = []
        self.deliveries = 0

    def scope_changed(self, app_id: str, scope: str) -> None:
        self.changed.append((app_id, scope))

    def deliveries_accepted(self) -> None:
        self.deliveries += 1


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
async def publisher(database: Database, clock: FakeClock, told: Told) -> Publisher:
    return make_publisher(database, clock, notifier=Notifier(told.scope_changed, told.deliveries_accepted))


def call(*changes: NewChange | str, request_id: str = "", user_id: str | None = None, **trigger: Any) -> Publish:
    """A publish of changes (a key: a change of it in the couple's scope), with a trigger if any of it is given."""
    made = tuple(NewChange("couple", c, '{"v": 1}') if isinstance(c, str) else c for c in changes)
    wakes = None
    if trigger:
        window = trigger.pop("window", 60.0)
        fields = {"type": "news", "exclude_user_id": "", "exclude_device_id": "", "content": Content(), **trigger}
        wakes = Trigger(dedupe_window_s=window, **fields)
    return Publish(
        app_id=APP,
        caller="service:test" if user_id is None else f"user:{user_id}",
        changes=made,
        trigger=wakes,
        user_id=user_id,
        request_id=request_id,
        content_hash=hashlib.sha256(repr(made).encode()).digest(),
    )


async def together(publisher: Publisher, *calls: Publish) -> list[Published | BaseException]:
    return await asyncio.gather(*(publisher.publish(one) for one in calls), return_exceptions=True)


async def test_sequences_are_gapless_under_concurrency(database: Database, publisher: Publisher) -> None:
    calls = [
        call(
            NewChange(f"scope-{n % 5}", f"key-{n % 7}", json.dumps({str(n): n})),
            *([NewChange(f"scope-{(n + 1) % 5}", "both", "{}")] if n % 3 == 0 else []),
        )
        for n in range(200)
    ]
    given: dict[str, list[int]] = defaultdict(list)
    for one, result in zip(calls, await together(publisher, *calls), strict=True):
        assert isinstance(result, Published), result
        for change, sequence in zip(one.changes, result.sequences, strict=True):
            given[change.scope].append(sequence)
    heads = dict(await rows_of(database, "SELECT scope, head FROM scopes"))
    assert sum(map(len, given.values())) == 267
    for scope, numbers in given.items():
        assert sorted(numbers) == list(range(1, heads[scope] + 1))
    merged = await rows_of(database, "SELECT value::text FROM changes WHERE key <> 'both'")
    assert sorted(n for (value,) in merged for n in json.loads(value).values()) == list(range(200))  # no lost update


async def test_batch_error_of_one_caller_spares_the_others(database: Database, publisher: Publisher) -> None:
    results = await together(
        publisher,
        call("first"),
        call(NewChange("couple", "nul", '"\\u0000"')),
        call(NewChange("couple", "wrong", "{}", expected_sequence=9)),
        call("a", NewChange("couple", "huge", "1e400000")),
        call("last"),
    )
    first, nul, wrong, huge, last = results
    assert isinstance(nul, InvalidRequest)
    assert isinstance(wrong, SequenceMismatch)
    assert isinstance(huge, InvalidRequest)
    assert isinstance(first, Published)
    assert isinstance(last, Published)
    assert sorted(first.sequences + last.sequences) == [1, 2]
    assert sorted(await rows_of(database, "SELECT key FROM changes")) == [("first",), ("last",)]
    assert await value_of(database, "SELECT head FROM scopes") == 2


async def test_idempotency_replay_returns_the_first_response(
    database: Database, publisher: Publisher, told: Told
) -> None:
    await couple(database)
    first = await publisher.publish(call("k", request_id="r", type="news"))
    again = await publisher.publish(call("k", request_id="r", type="news"))
    assert (first.replayed, again.replayed) == (False, True)
    assert (again.sequences, again.heads, again.notification_id) == (
        first.sequences,
        first.heads,
        first.notification_id,
    )
    assert first.heads[0].sequence == 1
    assert await value_of(database, "SELECT head FROM scopes") == 1
    assert sum((await states(database)).values()) == 2
    assert (told.changed, told.deliveries) == ([(APP, "couple")], 1)


async def test_idempotency_of_duplicates_in_one_batch_writes_once(database: Database, publisher: Publisher) -> None:
    results = await together(publisher, *(call("k", request_id="r") for _ in range(5)), call("k", request_id="s"))
    answers = [r for r in results if isinstance(r, Published)]
    assert [r.replayed for r in answers] == [False, True, True, True, True, False]
    assert [r.sequences for r in answers] == [(1,)] * 5 + [(2,)]


async def test_idempotency_conflict_is_refused_for_its_caller_alone(publisher: Publisher) -> None:
    other, good, reused = await together(
        publisher, call("x"), call("k", request_id="r"), call("different", request_id="r")
    )
    assert isinstance(other, Published)
    assert isinstance(good, Published)
    assert isinstance(reused, RequestIdReused)
    with pytest.raises(RequestIdReused):
        await publisher.publish(call("different", request_id="r"))


async def test_idempotency_key_is_scoped_to_the_caller(database: Database, publisher: Publisher) -> None:
    await couple(database)
    by_service = await publisher.publish(call("k", request_id="r"))
    by_user = await publisher.publish(call("other", request_id="r", user_id="ann"))
    assert (by_service.replayed, by_user.replayed) == (False, False)


async def test_transaction_failure_writes_nothing_and_frees_the_request_id(
    database: Database, publisher: Publisher, told: Told
) -> None:
    await couple(database)
    wrong = NewChange("couple", "b", "{}", expected_sequence=3)
    with pytest.raises(SequenceMismatch):
        await publisher.publish(call("a", wrong, request_id="r", type="news"))
    with pytest.raises(InvalidRequest):
        await publisher.publish(call("a", NewChange("couple", "b", '"\\u0000"'), request_id="r", type="news"))
    assert await rows_of(database, "SELECT key FROM changes") == []
    assert await rows_of(database, "SELECT head FROM scopes") == [(0,)]
    assert await rows_of(database, "SELECT 1 FROM notifications") == []
    assert await rows_of(database, "SELECT 1 FROM request_records") == []
    assert (told.changed, told.deliveries) == ([], 0)
    repaired = await publisher.publish(call("b", request_id="r"))
    assert (repaired.sequences, repaired.replayed) == ((1,), False)


async def test_idempotency_of_duplicates_of_a_failing_call_fails_alike(publisher: Publisher) -> None:
    wrong = NewChange("couple", "b", "{}", expected_sequence=3)
    results = await together(publisher, call(wrong, request_id="r"), call(wrong, request_id="r"), call("k"))
    assert [type(result) for result in results] == [SequenceMismatch, SequenceMismatch, Published]


async def test_idempotency_wait_for_a_duplicate_times_out(
    database: Database, database_urls: DatabaseUrls, clock: FakeClock
) -> None:
    impatient = replace(PATIENT.database, lock_ms=50)
    async with (
        open_database(database_urls.app_url, size=1, name="impatient", timings=impatient) as other,
        database.transaction() as conn,
    ):
        publisher = make_publisher(other, clock)
        await conn.execute(
            """INSERT INTO request_records (app_id, caller, rpc, request_id, content_hash, created_at)
               VALUES ($1, 'service:test', 'PublishChanges', 'r', ''::bytea, syncbeat_now())""",
            APP,
        )
        with pytest.raises(RequestInFlight):
            await publisher.publish(call("k", request_id="r"))
    assert await rows_of(database, "SELECT key FROM changes") == []


async def test_publish_is_for_writers_only(database: Database, publisher: Publisher) -> None:
    await couple(database)
    await add_members(database, "couple", "reader", role=MemberRole.READER)
    await add_members(database, "private", "bob")
    published = await publisher.publish(call("k", request_id="r", user_id="ann"))
    assert published.sequences == (1,)
    assert (await publisher.publish(call("k", request_id="r", user_id="ann"))).replayed
    for user, change in (
        ("reader", NewChange("couple", "k", "{}")),
        ("eve", NewChange("couple", "k", "{}")),
        ("ann", NewChange("private", "k", "{}")),
        ("ann", NewChange("no such scope", "k", "{}")),
    ):
        with pytest.raises(AccessDenied):
            await publisher.publish(call(change, user_id=user))
    with pytest.raises(AccessDenied):  # the scope it may write to is not written either
        await publisher.publish(call("own", NewChange("private", "k", "{}"), request_id="q", user_id="ann"))
    assert await rows_of(database, "SELECT scope, key FROM changes") == [("couple", "k")]
    assert await value_of(database, "SELECT count(*) FROM scopes") == 2
    assert (await publisher.publish(call("own", request_id="q", user_id="ann"))).sequences == (2,)


async def test_trigger_of_a_user_wakes_the_others(database: Database, publisher: Publisher, told: Told) -> None:
    await couple(database)
    await add_device(database, "ann", "tablet")
    published = await publisher.publish(call("k", user_id="ann", type="news", exclude_device_id="tablet"))
    woken = await deliveries(database)
    assert sorted((d.user_id, d.device_id, d.scope) for d in woken) == [
        ("ann", "phone", "couple"),
        ("bob", "phone", "couple"),
    ]
    assert {d.notification_id for d in woken} == {published.notification_id}
    assert told.deliveries == 1


async def test_trigger_wake_up_carries_the_head_of_its_scope(database: Database, publisher: Publisher) -> None:
    await couple(database)
    await add_members(database, "chat", "bob")
    await publisher.publish(call("a", "b"))
    published = await publisher.publish(call("a", NewChange("chat", "m", "{}"), "c", type="news"))
    heads = {head.scope: (head.epoch, head.sequence) for head in published.heads}
    assert heads["couple"][1] == 4
    found = await rows_of(database, "SELECT user_id, scope, epoch, sequence FROM deliveries ORDER BY 1, 2")
    assert found == [
        ("ann", "couple", *heads["couple"]),
        ("bob", "chat", *heads["chat"]),
        ("bob", "couple", *heads["couple"]),
    ]


async def test_dedupe_of_triggers_in_one_batch_keeps_window_and_newest_cursor(
    database: Database, publisher: Publisher
) -> None:
    await couple(database)
    await together(publisher, *(call(f"k{n}", type="news", exclude_user_id="bob") for n in range(6)))
    found = await rows_of(database, "SELECT state, reason, count(*)::int FROM deliveries GROUP BY 1, 2 ORDER BY 1, 2")
    assert found == [("PENDING", "", 1), ("SCHEDULED", "TRAILING", 1), ("SUPPRESSED", "MERGED", 4)]
    assert await rows_of(database, "SELECT sequence FROM dedupe_windows") == [(6,)]


async def test_scope_signal_counts_commits_that_wake(database: Database, publisher: Publisher) -> None:
    await couple(database)
    share = "SELECT round(triggered_share::numeric, 2)::float8 FROM scopes WHERE scope = 'couple'"
    assert await value_of(database, share) is None
    await publisher.publish(call("a", type="news"))
    assert await value_of(database, share) == 1.0
    await together(publisher, *(call(f"k{n}") for n in range(4)))
    assert await value_of(database, share) == round(0.9**4, 2)
    for n in range(40):
        await publisher.publish(call(f"k{n}", type="news"))
    assert await value_of(database, share) > 0.95
    before = await rows_of(database, "SELECT triggered_share FROM scopes")
    await publisher.publish(call("b", user_id="ann"))
    assert await rows_of(database, "SELECT triggered_share FROM scopes") < before, "a user's commits count too"


async def test_trailing_wake_up_lives_for_its_window_and_an_hour(database: Database, publisher: Publisher) -> None:
    await couple(database)
    await publisher.publish(call("a", type="news", window=86_400.0))
    await publisher.publish(call("b", type="news", window=86_400.0))
    lives = await rows_of(
        database,
        "SELECT DISTINCT extract(epoch FROM expires_at - due_at)::int FROM deliveries WHERE reason = 'TRAILING'",
    )
    assert lives == [(3600,)]
