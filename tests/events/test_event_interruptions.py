"""Deadlines, twins that wait, callers that leave, lost connections: an event is recorded with its effects, or not."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import grpc
import pytest

from syncbeat.v1 import event_service_pb2 as pb
from tests.support.event_requests import SOURCE, change, event, named, told
from tests.support.rpc_server import Server, refusal_of
from tests.support.seed import cut_connections

pytestmark = pytest.mark.rpc

ACCEPTED = ("ACCEPTED", "ACCEPTED")
WORN_OUT = 50


def gated(event_id: str = "e1") -> pb.IngestEventRequest:
    """An event that fails until the gate is open."""
    effects = pb.EventEffects(changes=[change("room", 1, key=event_id), change("gate", 2, expected_sequence=1)])
    return event(event_id, effects, subject=event_id, at=1)


def retry(event_id: str = "e1") -> pb.RetryEventRequest:
    return pb.RetryEventRequest(source=SOURCE, event_id=event_id)


async def found(server: Server, event_id: str = "e1") -> pb.Event:
    answer: pb.GetEventResponse = await server.backend(pb.GetEventRequest(source=SOURCE, event_id=event_id))
    return answer.event


async def move_time(server: Server, **span: float) -> None:
    """Let the database's time be so much later than the real one."""
    conn = await asyncpg.connect(server.urls.owner_url)
    try:
        await conn.execute("UPDATE test_clock SET at = $1", datetime.now(UTC) + timedelta(**span))
    finally:
        await conn.close()


async def test_event_effects_never_outlive_the_deadline(server: Server) -> None:
    assert told(await server.backend(gated())) == ("FAILED", "FAILED")
    await server.publish("gate", key="state")
    first = await found(server)
    life_s = first.deadline_time.seconds - first.first_seen_time.seconds
    await move_time(server, seconds=life_s + 1)
    answer = await server.backend(retry())
    assert told(answer) == ("FAILED", "FAILED")
    assert named((await server.backend(gated())).receipt.event_state) == "FAILED"
    given_up = await found(server)
    assert (named(given_up.state), given_up.attempts) == ("FAILED", first.attempts)
    assert not given_up.HasField("next_attempt_time")
    assert all("room" not in line for line in (await server.rows())["changes"])
    await move_time(server, seconds=life_s - 60)
    assert told(await server.backend(retry())) == ACCEPTED, "it was its deadline that kept it"


async def test_event_that_is_not_failed_is_answered_as_it_is_by_retries(server: Server) -> None:
    await server.publish("gate", key="state")
    assert told(await server.backend(gated())) == ACCEPTED
    before = await server.rows()
    assert told(await server.backend(retry())) == ACCEPTED
    assert await server.rows() == before
    refusal = await server.backend.refusal(retry("nobody"))
    assert refusal.told == ("NOT_FOUND", "NOT_FOUND")


async def test_event_twin_waits_for_the_first_within_its_deadline(server: Server) -> None:
    effects = pb.EventEffects(changes=[change("room", 1)])
    assert told(await server.backend(event("e1", effects))) == ACCEPTED
    conn = await asyncpg.connect(server.urls.admin_url)
    try:
        transaction = conn.transaction()
        await transaction.start()
        await conn.execute(  # as one that is under way at another server
            """INSERT INTO events SELECT (jsonb_populate_record(e, '{"event_id": "e2"}')).* FROM events e"""
        )
        began = asyncio.get_running_loop().time()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await server.backend(event("e2", effects), timeout_s=1.0)
        assert asyncio.get_running_loop().time() - began < 5
        assert caught.value.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.ABORTED)
        waiting = asyncio.create_task(server.backend(event("e2", effects)))
        others = [server.backend(event(f"other-{n}", effects, subject=f"s{n}")) for n in range(20)]
        assert {told(answer) for answer in await asyncio.gather(*others)} == {ACCEPTED}, "who waits holds up no other"
        await transaction.rollback()
        assert told(await waiting) == ACCEPTED
    finally:
        await conn.close()


async def test_event_whose_caller_leaves_is_whole_or_not_there(server: Server) -> None:
    requests = [
        event(f"left-{number}", pb.EventEffects(changes=[change(f"room-{number}", 1)]), subject=f"s{number}")
        for number in range(60)
    ]
    for number, request in enumerate(requests):
        call = asyncio.create_task(server.backend(request))
        await asyncio.wait([call], timeout=0.0005 * (number % 20))
        call.cancel()
    answers = await asyncio.gather(*(server.backend(request) for request in requests))
    assert {named(answer.receipt.event_state) for answer in answers} == {"ACCEPTED"}
    heads = await heads_of(server)
    assert [heads[f"room-{number}"] for number in range(60)] == [1] * 60


async def heads_of(server: Server) -> dict[str, int]:
    conn = await asyncpg.connect(server.urls.admin_url)
    try:
        return {row["scope"]: row["head"] for row in await conn.fetch("SELECT scope, head FROM scopes")}
    finally:
        await conn.close()


async def test_event_ingest_over_lost_connections_loses_and_doubles_nothing(server: Server) -> None:
    over, tried = asyncio.Event(), Counter[str]()

    async def deliver(number: int) -> Any:
        effects = pb.EventEffects(changes=[change(f"room-{number % 5}", number, key=f"k{number}")])
        for _ in range(WORN_OUT):
            try:
                return await server.backend(event(f"e{number}", effects, subject=f"s{number}"))
            except grpc.aio.AioRpcError as error:
                tried[refusal_of(error).reason] += 1
        raise AssertionError("it never got through")

    async def deliver_some(start: int) -> list[Any]:
        return [await deliver(number) for number in range(start, 120, 8)]

    async def cut() -> int:
        ended = 0
        while not over.is_set():
            ended += await cut_connections(server.urls)
            await asyncio.wait([asyncio.ensure_future(over.wait())], timeout=0.3)
        return ended

    cutting = asyncio.create_task(cut())
    answers = [one for some in await asyncio.gather(*map(deliver_some, range(8))) for one in some]
    over.set()
    assert await cutting > 0
    assert {named(answer.receipt.event_state) for answer in answers} == {"ACCEPTED"}
    assert sum((await heads_of(server)).values()) == 120
    assert len((await server.rows())["events"]) == 120


@pytest.mark.parametrize(("held", "every", "longest_s"), [("event_order_heads", 10, 2.0), ("scopes", 50, 3.5)])
async def test_event_whose_lock_is_held_delays_no_other(
    server: Server, held: str, every: int, longest_s: float
) -> None:
    effects = pb.EventEffects(changes=[change("slow", 1)])
    assert told(await server.backend(event("s0", effects, subject="slow", at=1))) == ACCEPTED
    took: list[float] = []

    async def timed(number: int) -> None:
        began = asyncio.get_running_loop().time()
        answer = await server.backend(event(f"e{number}", subject=f"other{number}", at=2), timeout_s=10.0)
        took.append(asyncio.get_running_loop().time() - began)
        assert told(answer) == ACCEPTED

    conn = await asyncpg.connect(server.urls.admin_url)
    try:
        transaction = conn.transaction()
        await transaction.start()
        assert await conn.execute(f"SELECT 1 FROM {held} FOR UPDATE") == "SELECT 1"  # of the list above
        slow, others = list[asyncio.Future[Any]](), list[asyncio.Future[None]]()
        for number in range(50):
            if number % every == 5:
                own = event(f"s{number}", effects, subject="slow", at=number)
                slow.append(asyncio.ensure_future(server.backend(own, timeout_s=10.0)))
            others.append(asyncio.ensure_future(timed(number)))
        await asyncio.gather(*others)
        assert not any(one.done() for one in slow)
        await transaction.rollback()
        assert {named(answer.receipt.state) for answer in await asyncio.gather(*slow)} <= {"ACCEPTED", "STALE"}
    finally:
        await conn.close()
    assert max(took) < longest_s, took
