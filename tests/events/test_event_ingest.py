"""Events are ingested once, in the order in which they occurred, with their effects in the same transaction."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from syncbeat_server.errors import AccessDenied, EventIdReused
from syncbeat_server.events.ingest import EventIngest
from syncbeat_server.events.model import Effects, EventState, IncomingEvent, IngestResult, UserAction, UserEffect
from syncbeat_server.storage.postgres.database import Database
from tests.support.build import APP, Notifier
from tests.support.databases import DatabaseUrls, open_database
from tests.support.events import Counts, change, event, feed_value, make_ingest, stored
from tests.support.fake_clock import START, FakeClock
from tests.support.process_rules import PATIENT

pytestmark = [pytest.mark.store, pytest.mark.usefixtures("database", "clock")]

ACCEPTED, DUPLICATE, STALE, FAILED = EventState.ACCEPTED, EventState.DUPLICATE, EventState.STALE, EventState.FAILED
EARLY, LATE = START - timedelta(hours=2), START - timedelta(hours=1)


@pytest.fixture
def ingest(database: Database, clock: FakeClock) -> EventIngest:
    return make_ingest(database, clock)


async def together(ingest: EventIngest, *events: IncomingEvent) -> list[IngestResult | BaseException]:
    return await asyncio.gather(*(ingest.ingest(one) for one in events), return_exceptions=True)


def states(results: list[IngestResult | BaseException]) -> list[EventState]:
    return [one.receipt.state for one in results if isinstance(one, IngestResult)]


async def test_event_is_recorded_with_its_change(ingest: EventIngest, database: Database) -> None:
    answer = await ingest.ingest(event("e1", change(1), at=EARLY, payload_json='{"a":1}'))

    assert (answer.receipt.state, answer.receipt.event_state) == (ACCEPTED, ACCEPTED)
    assert [(head.scope, head.sequence) for head in answer.result.heads] == [("team", 1)]
    assert await feed_value(database) == {"v": 1}
    found = await stored(database, "e1")
    assert (found.state, found.attempts, found.payload_json) == (ACCEPTED, 1, '{"a":1}')
    assert (found.occurred_at, found.first_seen_at) == (EARLY, START)
    assert found.deadline_at == START + timedelta(days=1)


async def test_duplicate_is_answered_as_the_first(ingest: EventIngest, database: Database) -> None:
    first = await ingest.ingest(event("e1", change(1)))
    again = await ingest.ingest(event("e1", change(1)))

    assert (again.receipt.state, again.receipt.event_state) == (DUPLICATE, ACCEPTED)
    assert again.result == first.result
    assert (await stored(database, "e1")).duplicate_count == 1


async def test_duplicates_of_one_batch_have_one_effect(ingest: EventIngest, database: Database) -> None:
    answers = await together(ingest, *(event("e1", change(1)) for _ in range(50)))

    assert sorted(states(answers)) == [ACCEPTED] + [DUPLICATE] * 49
    assert {one.result.heads[0].sequence for one in answers if isinstance(one, IngestResult)} == {1}
    assert (await stored(database, "e1")).duplicate_count == 49


async def test_duplicates_of_two_processes_have_one_effect(
    ingest: EventIngest, database: Database, database_urls: DatabaseUrls, clock: FakeClock
) -> None:
    async with open_database(database_urls.app_url, size=4, name="other", timings=PATIENT.database) as other:
        elsewhere = make_ingest(other, clock)
        answers = [
            *await asyncio.gather(
                *(one.ingest(event("e1", change(1))) for _ in range(25) for one in (ingest, elsewhere)),
                return_exceptions=True,
            )
        ]
    assert sorted(states(answers)) == [ACCEPTED] + [DUPLICATE] * 49
    assert (await stored(database, "e1")).duplicate_count == 49


@pytest.mark.parametrize("apart", [True, False])
async def test_event_id_reused_with_other_content_is_refused(ingest: EventIngest, apart: bool) -> None:
    batches = [[event("e1", change(1))], [event("e1", change(2))]]
    if not apart:
        batches = [batches[0] + batches[1]]

    first, second = [answer for batch in batches for answer in await together(ingest, *batch)]

    assert states([first]) == [ACCEPTED]
    assert isinstance(second, EventIdReused)


async def test_same_event_id_of_another_source_is_another_event(ingest: EventIngest) -> None:
    await ingest.ingest(event("e1", change(1)))

    answer = await ingest.ingest(event("e1", change(1), source="identity"))

    assert answer.receipt.state is ACCEPTED


@pytest.mark.parametrize("kind", ["changed", "deleted"])
async def test_earlier_event_is_stale_whatever_its_type(ingest: EventIngest, database: Database, kind: str) -> None:
    await ingest.ingest(event("e2", change(2), at=LATE))

    answer = await ingest.ingest(event("e1", change(1), at=EARLY, type=kind))

    assert answer.receipt.state is STALE
    assert answer.result.heads == ()
    assert await feed_value(database) == {"v": 2}
    assert (await stored(database, "e1")).attempts == 0


async def test_stale_event_of_one_batch_has_no_effect(ingest: EventIngest, database: Database) -> None:
    answers = await together(ingest, event("e2", change(2), at=LATE), event("e1", change(1), at=EARLY))

    assert states(answers) == [ACCEPTED, STALE]
    assert await feed_value(database) == {"v": 2}


async def test_events_of_the_same_time_go_by_the_bytes_of_their_ids(ingest: EventIngest) -> None:
    await ingest.ingest(event("é", change(1), at=EARLY))  # two bytes above 0x7F: later than any ASCII id

    answers = [await ingest.ingest(event(name, change(1), at=EARLY)) for name in ("z", "ê")]

    assert [one.receipt.state for one in answers] == [STALE, ACCEPTED]


async def test_events_without_a_time_go_in_the_order_of_arrival(ingest: EventIngest) -> None:
    answers = [await ingest.ingest(event(name, change(1))) for name in ("c", "b", "a")]
    answers += [one for one in await together(ingest, event("B"), event("A")) if isinstance(one, IngestResult)]

    assert [one.receipt.state for one in answers] == [ACCEPTED] * 5


async def test_other_subjects_and_events_without_one_are_not_ordered(ingest: EventIngest) -> None:
    await ingest.ingest(event("e9", at=LATE))
    others = [
        event("e1", at=EARLY, subject="bob"),
        event("e2", at=EARLY, subject=""),
        event("e3", at=EARLY, subject=""),
    ]

    assert states(await together(ingest, *others)) == [ACCEPTED] * 3


async def test_ordering_key_stands_before_the_subject(ingest: EventIngest) -> None:
    await ingest.ingest(event("e2", at=LATE, subject="invoice 2", ordering_key="alice"))

    answer = await ingest.ingest(event("e1", at=EARLY, subject="invoice 1", ordering_key="alice"))

    assert answer.receipt.state is STALE


async def test_order_and_claims_hold_when_a_new_subject_begins_in_two_processes(
    ingest: EventIngest, database: Database, database_urls: DatabaseUrls, clock: FakeClock
) -> None:
    async with open_database(database_urls.app_url, size=4, name="other", timings=PATIENT.database) as other:
        elsewhere = make_ingest(other, clock)
        for number in range(10):
            old = event(f"a{number}", change(1, str(number)), at=EARLY, subject=f"s{number}")
            new = event(f"b{number}", change(2, str(number)), at=LATE, subject=f"s{number}")
            first, second = await asyncio.gather(ingest.ingest(old), elsewhere.ingest(new))
            assert first.receipt.state in (ACCEPTED, STALE)
            assert second.receipt.state is ACCEPTED
            assert await feed_value(database, str(number)) == {"v": 2}


async def test_effect_without_its_method_is_refused_and_not_recorded(ingest: EventIngest, database: Database) -> None:
    effects = Effects(users=(UserEffect("bob", UserAction.DELETE),), changes=(change(1),))
    wanted = event("e1", effects=effects, methods=frozenset({"IngestEvent", "PublishChanges"}))

    with pytest.raises(AccessDenied, match="DeleteUser"):
        await ingest.ingest(wanted)

    allowed = replace(wanted, methods=frozenset({"IngestEvent", "PublishChanges", "DeleteUser"}))
    assert (await ingest.ingest(allowed)).receipt.state is ACCEPTED


async def test_ingest_tells_streams_and_counts(database: Database, clock: FakeClock) -> None:
    told: list[tuple[str, str]] = []
    counts = Counts()
    ingest = make_ingest(
        database, clock, notifier=Notifier(lambda app_id, scope: told.append((app_id, scope))), counts=counts
    )
    await ingest.ingest(event("e2", change(1), at=LATE))
    await ingest.ingest(event("e2", change(1), at=LATE))
    await ingest.ingest(event("e1", change(1), at=EARLY))

    assert told == [(APP, "team")]
    assert [state for _, state in counts.came] == [ACCEPTED, DUPLICATE, STALE]
