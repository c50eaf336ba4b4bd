"""Events that come shuffled, twice, failing and retried end in the state of the ordered set: a few histories of many.

`make prove` plays many more (tests/prove/test_event_histories.py).
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import pytest

from syncbeat.v1 import event_service_pb2 as pb
from tests.support.databases import DatabaseUrls
from tests.support.event_histories import play_event_histories
from tests.support.event_requests import SOURCE, change, event, moment, named, told, user
from tests.support.rpc_server import Server

pytestmark = pytest.mark.rpc

ACCEPTED, STALE, FAILED = (("ACCEPTED",) * 2), (("STALE",) * 2), (("FAILED",) * 2)


def test_event_histories_shuffled_end_as_ordered(database_urls: DatabaseUrls, redis_url: str, tmp_path: Path) -> None:
    play_event_histories(database_urls, redis_url, tmp_path, histories=4, steps=10)


def says(event_id: str, at: float, value: object, **fields: object) -> pb.IngestEventRequest:
    effects = pb.EventEffects(changes=[change("room", value)])
    return event(event_id, effects, at=at, **{"subject": "ann", **fields})


async def value_of(server: Server, scope: str = "room") -> str:
    rows = (await server.rows())["changes"]
    (line,) = [row for row in rows if row.startswith(f"(default,{scope},")]
    return line.split(",")[3]


async def test_event_order_does_not_tell_types_apart(server: Server) -> None:
    gone = event("e2", pb.EventEffects(users=[user("ann", "DELETE")]), at=2, subject="ann", type="user.deleted")
    late = event("e1", pb.EventEffects(users=[user("ann", "ENABLE")]), at=1, subject="ann", type="user.updated")
    assert told(await server.backend(gone)) == ACCEPTED
    assert told(await server.backend(late)) == STALE
    (row,) = (await server.backend(pb.ListEventsRequest(state=pb.EVENT_STATE_STALE))).events
    assert (row.event_id, row.type, named(row.state)) == ("e1", "user.updated", "STALE")


@pytest.mark.parametrize(("first", "second"), [("Z", "a"), ("z", "é"), ("~", "\U0001f600"), ("\uffe6", "\U0001f600")])
async def test_event_order_of_one_moment_is_by_the_bytes_of_the_id(server: Server, first: str, second: str) -> None:
    assert told(await server.backend(says(second, 1, 2))) == ACCEPTED
    assert told(await server.backend(says(first, 1, 1))) == STALE
    assert told(await server.backend(says(f"{second}+", 1, 3))) == ACCEPTED
    assert await value_of(server) == "3"


async def test_event_order_is_by_source_and_ordering_key(server: Server) -> None:
    assert told(await server.backend(says("e9", 9, 9))) == ACCEPTED
    assert told(await server.backend(says("e1", 1, 1, source="other"))) == ACCEPTED
    assert told(await server.backend(says("e2", 2, 2, subject="bob"))) == ACCEPTED
    assert told(await server.backend(says("e3", 3, 3, subject="bob", ordering_key="ann"))) == STALE
    assert told(await server.backend(says("e4", 4, 4, ordering_key="apart"))) == ACCEPTED
    for number in (6, 5):  # of nothing in particular: no order
        assert told(await server.backend(says(f"e{number}", number, number, subject=""))) == ACCEPTED
    found = (await server.backend(pb.GetEventRequest(source=SOURCE, event_id="e3"))).event
    assert (found.subject, found.ordering_key) == ("bob", "ann")
    assert found.occurred_time == moment(3)


async def test_event_that_failed_holds_up_no_other_and_is_stale_after_a_later_one(server: Server) -> None:
    wrong = says("e2", 2, 2)
    wrong.effects.changes[0].expected_sequence = 1
    assert told(await server.backend(wrong)) == FAILED
    assert told(await server.backend(says("e1", 1, 1))) == ACCEPTED, "what failed is no head of its subject"
    assert told(await server.backend(says("e3", 3, 3))) == ACCEPTED
    assert told(await server.backend(pb.RetryEventRequest(source=SOURCE, event_id="e2"))) == STALE
    assert told(await server.backend(wrong)) == ("DUPLICATE", "STALE")
    assert await value_of(server) == "3"


async def test_event_without_a_time_occurs_now(server: Server) -> None:
    assert told(await server.backend(says("e1", -86_400 * 365 * 20, 1))) == ACCEPTED
    now = says("e2", 0, 2)
    now.ClearField("occurred_time")
    assert told(await server.backend(now)) == ACCEPTED
    assert told(await server.backend(now)) == ("DUPLICATE", "ACCEPTED"), "a later now is no other content"
    found = (await server.backend(pb.GetEventRequest(source=SOURCE, event_id="e2"))).event
    assert abs(found.occurred_time.seconds - found.first_seen_time.seconds) <= 60


async def test_event_without_a_time_is_after_those_that_came_before(server: Server) -> None:
    ahead = says("e1", 0, 1)
    ahead.occurred_time.FromDatetime(datetime.now(UTC) + timedelta(seconds=200))
    assert told(await server.backend(ahead)) == ACCEPTED
    for event_id, value in (("d2", 2), ("c3", 3)):
        now = says(event_id, 0, value)
        now.ClearField("occurred_time")
        assert told(await server.backend(now)) == ACCEPTED
        assert await value_of(server) == str(value)


# ---------------------------------------------------------------------------------------------------- the ends of time

EPOCH, EARLIEST = datetime(1970, 1, 1, tzinfo=UTC), datetime.min.replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("at", "fault"),
    [
        (EARLIEST, "before 1970"),
        (EARLIEST + timedelta(microseconds=1), "before 1970"),
        (EPOCH - timedelta(microseconds=1), "before 1970"),
        (datetime.max.replace(tzinfo=UTC), "ahead of the service's clock"),
    ],
)
async def test_event_at_an_end_of_time_is_refused_and_harms_no_other(server: Server, at: datetime, fault: str) -> None:
    wrong = says("e1", 0, 1)
    wrong.occurred_time.FromDatetime(at)
    refused = await server.backend.refusal(wrong)
    assert refused.told == ("INVALID_ARGUMENT", "INVALID_FIELD")
    assert (refused.fields, refused.field_reasons) == (("occurred_time",), ("OUT_OF_RANGE",))
    assert fault in refused.message
    first = says("e2", 0, 2)
    first.occurred_time.FromDatetime(EPOCH)
    assert told(await server.backend(first)) == ACCEPTED
    assert [one.event_id for one in (await server.backend(pb.ListEventsRequest())).events] == ["e2"]


@pytest.mark.parametrize(
    ("stored", "year", "then"), [("-infinity", 1, ACCEPTED), ("infinity", 9999, STALE)], ids=["minus", "plus"]
)
async def test_event_recorded_at_an_infinity_is_read_and_ordered(
    server: Server, stored: str, year: int, then: tuple[str, str]
) -> None:
    wrong = says("f1", 0, 1, ordering_key="failed")
    wrong.effects.changes[0].expected_sequence = 7
    assert told(await server.backend(wrong)) == FAILED
    assert told(await server.backend(says("e1", 0, 1))) == ACCEPTED
    conn = await asyncpg.connect(server.urls.admin_url)
    try:
        await conn.execute(f"UPDATE events SET occurred_at = '{stored}'")
        await conn.execute(f"UPDATE event_order_heads SET occurred_at = '{stored}'")
    finally:
        await conn.close()
    listed = (await server.backend(pb.ListEventsRequest())).events
    assert {one.occurred_time.ToDatetime().year for one in listed} == {year}
    found = (await server.backend(pb.GetEventRequest(source=SOURCE, event_id="e1"))).event
    assert found.occurred_time.ToDatetime().year == year
    assert told(await server.backend(pb.RetryEventRequest(source=SOURCE, event_id="f1"))) == FAILED
    assert told(await server.backend(says("e2", 1, 2))) == then
    for event_id in ("e3", "e4"):
        now = says(event_id, 0, 3)
        now.ClearField("occurred_time")
        assert told(await server.backend(now)) == ACCEPTED
