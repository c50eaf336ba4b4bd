"""Source times over the wire: what is answered, read back, streamed and refused."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from syncbeat.v1 import core_pb2, event_service_pb2
from syncbeat.v1 import sync_service_pb2 as pb
from tests.support.event_requests import event, told
from tests.support.rpc_server import Server
from tests.support.sync_requests import S, with_a_couple

pytestmark = pytest.mark.rpc

NOW = datetime.now(UTC).replace(microsecond=123_456)


@pytest.fixture
async def ready(server: Server) -> Server:
    return await with_a_couple(server)


def made(seconds: float, patch: str = "", key: str = "k", nanos: int = 0) -> core_pb2.NewChange:
    """A value made so many seconds after the tests began; none: a deletion."""
    change = core_pb2.NewChange(scope=S, key=key, merge_patch_json=patch, deleted=not patch)
    change.source_time.FromDatetime(NOW + timedelta(seconds=seconds))
    change.source_time.nanos += nanos
    return change


def publish(*changes: core_pb2.NewChange, **fields: Any) -> pb.PublishChangesRequest:
    return pb.PublishChangesRequest(changes=changes, **fields)


def outcomes(answer: pb.PublishChangesResponse) -> list[tuple[int, str]]:
    return [
        (one.sequence, pb.PublishOutcome.Name(one.outcome).removeprefix("PUBLISH_OUTCOME_")) for one in answer.results
    ]


@pytest.mark.parametrize("caller", ["service", "user", "for a user"])
async def test_publish_outcome_tells_what_was_written(ready: Server, caller: str) -> None:
    call = ready.user("alice") if caller == "user" else ready.backend
    fields = {"user_id": "alice"} if caller == "for a user" else {}
    plain = core_pb2.NewChange(scope=S, key="plain", merge_patch_json="1")
    first = await call(publish(made(-2, "2"), made(-3, "3"), made(-2, "2"), plain, **fields))
    assert outcomes(first) == [(1, "WRITTEN"), (1, "SUPERSEDED"), (1, "UNCHANGED"), (2, "UNSPECIFIED")]
    again = await call(publish(made(-3, "3"), request_id="r", **fields))
    assert (outcomes(again), again.replayed) == ([(1, "SUPERSEDED")], False)
    replay = await call(publish(made(-3, "3"), request_id="r", **fields))
    assert (outcomes(replay), replay.replayed) == ([(1, "SUPERSEDED")], True)
    assert [head.sequence for head in replay.heads] == [2]


async def test_source_time_is_kept_to_the_microsecond_and_read_back(ready: Server) -> None:
    alice = ready.user("alice")
    await ready.backend(publish(made(-2, "2", nanos=999)))
    same = await ready.backend(publish(made(-2, "2", nanos=1)))
    assert outcomes(same) == [(1, "UNCHANGED")]
    await ready.backend(publish(core_pb2.NewChange(scope=S, key="plain", merge_patch_json="1"), made(-1, key="gone")))
    page = await alice(pb.ListChangesRequest(cursor=core_pb2.ScopeCursor(scope=S)))
    found = {one.key: one for one in page.changes}
    assert found["k"].source_time == made(-2).source_time
    assert (found["gone"].deleted, found["gone"].source_time) == (True, made(-1).source_time)
    assert not found["plain"].HasField("source_time")


@pytest.mark.parametrize("fields", [{"user_id": "alice"}, {"all_scopes": True, "token": ""}], ids=["user", "app"])
async def test_stream_brings_source_times_and_nothing_of_what_was_not_written(
    ready: Server, fields: dict[str, Any]
) -> None:
    stream = ready.backend.watch(**fields)
    await stream.opened()
    await ready.backend(publish(made(-2, "2")))
    change = await stream.next("change")
    assert (change.value_json, change.source_time) == ("2", made(-2).source_time)
    await ready.backend(publish(made(-3, "3")))
    await ready.backend(publish(made(-1, "1")))
    change = await stream.next("change")
    assert (change.value_json, change.sequence) == ("1", 2)


@pytest.mark.parametrize("seconds", [3_600, -4e9], ids=["future", "before 1970"])
async def test_source_time_out_of_range_is_an_invalid_field(ready: Server, seconds: float) -> None:
    for call in (ready.backend, ready.user("alice")):
        refused = await call.refusal(publish(made(-1, "1"), made(seconds, "2")))
        assert refused.told == ("INVALID_ARGUMENT", "INVALID_FIELD")
        assert (refused.fields, refused.field_reasons) == (("changes[1].source_time",), ("OUT_OF_RANGE",))
    effects = event_service_pb2.EventEffects(changes=[made(seconds, "2")])
    refused = await ready.backend.refusal(event("e", effects))
    assert (refused.fields, refused.field_reasons) == (("effects.changes[0].source_time",), ("OUT_OF_RANGE",))


async def test_event_that_writes_nothing_wakes_nobody(ready: Server) -> None:
    trigger = core_pb2.SyncTrigger(type="news")
    for event_id, seconds in (("e1", -1), ("e2", -2)):
        effects = event_service_pb2.EventEffects(changes=[made(seconds, "1")], trigger=trigger)
        answer = await ready.backend(event(event_id, effects))
        assert told(answer) == ("ACCEPTED", "ACCEPTED")
        assert [head.sequence for head in answer.heads] == [1]
        assert bool(answer.trigger_notification_id) == (event_id == "e1")
