"""Tests idempotency by request_id: one effect, one answer, whoever repeats it and when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest

from syncbeat.v1 import core_pb2, push_service_pb2, sync_service_pb2
from tests.support.fake_clock import wait_until
from tests.support.rpc_server import BACKEND, Caller, Server, entry, running_server

pytestmark = pytest.mark.rpc

REUSED = ("INVALID_ARGUMENT", "REQUEST_ID_REUSED")
TWINS = 12


def publish(request_id: str, value: str = "1", **fields: Any) -> sync_service_pb2.PublishChangesRequest:
    change = core_pb2.NewChange(scope="s", key="k", merge_patch_json=value, **fields)
    trigger = core_pb2.SyncTrigger(type="t")
    return sync_service_pb2.PublishChangesRequest(request_id=request_id, changes=[change], trigger=trigger)


def send(request_id: str, title: str = "t") -> push_service_pb2.SendNotificationRequest:
    return push_service_pb2.SendNotificationRequest(
        request_id=request_id,
        user_ids=core_pb2.UserIds(ids=["u"]),
        notification=core_pb2.Notification(title=title),
    )


def on_behalf(request_id: str, value: str = "1") -> sync_service_pb2.PublishChangesRequest:
    request = publish(request_id, value)
    request.user_id = "u"
    return request


@dataclass(frozen=True)
class Way:
    """A way to make an idempotent call: who calls, and two requests of different content."""

    caller: Callable[[Server], Caller]
    request: Callable[[str], Any]
    other: Callable[[str], Any]


WAYS = {
    "a service publishes": Way(lambda server: server.backend, publish, lambda name: publish(name, "2")),
    "a user publishes": Way(lambda server: server.user("u"), publish, lambda name: publish(name, "2")),
    "a service for a user": Way(lambda server: server.backend, on_behalf, lambda name: on_behalf(name, "2")),
    "a service sends": Way(lambda server: server.backend, send, lambda name: send(name, "another")),
}
each_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())


@pytest.fixture
async def ready(server: Server) -> Server:
    """A server with a user who has a device and writes a scope."""
    await server.add("s", "u")
    await server.register("u", "d", "token")
    return server


def without_replayed(answer: Any) -> Any:
    copy = type(answer)()
    copy.CopyFrom(answer)
    copy.ClearField("replayed")
    return copy


@each_way
async def test_idempotency_replay_returns_the_first_response(ready: Server, way: Way) -> None:
    caller = way.caller(ready)
    first = await caller(way.request("r"))
    assert not first.replayed
    assert first.notification_id
    before = await ready.rows()
    replay = await caller(way.request("r"))
    assert replay.replayed
    assert without_replayed(replay) == first
    assert await ready.rows() == before
    another = await caller(way.request("r2"))
    assert not another.replayed
    assert another.notification_id != first.notification_id


@each_way
async def test_idempotency_of_concurrent_duplicates_executes_one(ready: Server, way: Way) -> None:
    caller = way.caller(ready)
    answers = await asyncio.gather(*(caller(way.request("r")) for _ in range(TWINS)))
    assert sorted(answer.replayed for answer in answers) == [False] + [True] * (TWINS - 1)
    assert all(without_replayed(answer) == without_replayed(answers[0]) for answer in answers)
    rows = await ready.rows()
    assert len(rows["notifications"]) == len(rows["deliveries"]) == len(rows["request_records"]) == 1


@each_way
async def test_idempotency_conflict_of_other_content_is_refused(ready: Server, way: Way) -> None:
    caller = way.caller(ready)
    await caller(way.request("r"))
    before = await ready.rows()
    refusal = await caller.refusal(way.other("r"))
    assert refusal.told == REUSED
    assert refusal.fields == ("request_id",)
    assert await ready.rows() == before


@each_way
async def test_idempotency_conflict_of_concurrent_calls_does_not_mix(ready: Server, way: Way) -> None:
    caller = way.caller(ready)
    requests = [(way.request if index % 2 else way.other)("r") for index in range(TWINS)]
    answers = await asyncio.gather(*map(caller, requests), return_exceptions=True)
    refused = [index % 2 for index, answer in enumerate(answers) if isinstance(answer, BaseException)]
    assert len(refused) == TWINS / 2
    assert len(set(refused)) == 1
    assert len((await ready.rows())["notifications"]) == 1


@each_way
async def test_idempotency_without_request_id_counts_each_call(ready: Server, way: Way) -> None:
    caller = way.caller(ready)
    answers = await asyncio.gather(*(caller(way.request("")) for _ in range(3)))
    assert not any(answer.replayed for answer in answers)
    assert len({answer.notification_id for answer in answers}) == 3
    assert not (await ready.rows())["request_records"]


async def test_idempotency_failed_call_frees_its_request_id(ready: Server) -> None:
    for caller in (ready.backend, ready.user("u")):
        failing = publish("r", expected_sequence=7)
        refusal = await caller.refusal(failing)
        assert refusal.told == ("ABORTED", "SEQUENCE_MISMATCH")
        assert not [row for row in (await ready.rows())["request_records"] if ",r," in row and "null" in row]
        assert not (await caller(publish("r", "2"))).replayed, "the same id, and other content"
        assert (await caller(publish("r", "2"))).replayed
    stranger = ready.user("v")
    assert (await stranger.refusal(publish("r"))).told == ("PERMISSION_DENIED", "ACCESS_DENIED")
    await ready.add("s", "v")
    assert not (await stranger(publish("r"))).replayed


async def test_idempotency_key_is_scoped_to_caller_and_method(database_urls: Any, redis_url: str) -> None:
    tokens = ",".join((entry("backend", BACKEND), entry("another", "another-token")))
    variables: Any = {"SERVICE_TOKENS": tokens}
    async with running_server(database_urls, redis_url, **variables) as server:
        await server.add("s", "u")
        calls = [
            (server.backend, publish("r")),
            (server.backend, send("r")),
            (server.bearer("another-token"), publish("r")),
            (server.user("u"), publish("r")),
        ]
        assert [(await caller(request)).replayed for caller, request in calls] == [False] * 4
        assert [(await caller(request)).replayed for caller, request in calls] == [True] * 4


async def test_idempotency_of_duplicates_on_two_servers(ready: Server, redis_url: str) -> None:
    async with running_server(ready.urls, redis_url) as second:
        requests = [send("r"), publish("r"), send("r"), publish("r")]
        calls = [server.backend(request) for request in requests for server in (ready, second)]
        answers = await asyncio.gather(*calls)
        sent, published = answers[:2] + answers[4:6], answers[2:4] + answers[6:]
        for twins in (sent, published):
            assert sorted(answer.replayed for answer in twins) == [False, True, True, True]
            assert len({answer.notification_id for answer in twins}) == 1


@asynccontextmanager
async def twin_under_way(server: Server) -> AsyncIterator[asyncpg.Connection]:
    """Somebody's call with the id `r` that has not ended: its record is written and not committed."""
    conn = await asyncpg.connect(server.urls.admin_url)
    try:
        transaction = conn.transaction()
        await transaction.start()
        await conn.execute(
            """INSERT INTO request_records (app_id, caller, rpc, request_id, content_hash, created_at)
               VALUES ('default', 'service:backend', 'SendNotification', 'r', '', now())"""
        )
        yield conn
        await transaction.rollback()
    finally:
        await conn.close()


async def test_idempotency_waits_for_a_duplicate_in_flight(ready: Server) -> None:
    async with twin_under_way(ready) as conn:

        async def waits() -> bool:
            return bool(await conn.fetchval("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"))

        call = asyncio.create_task(ready.backend(send("r")))
        await wait_until(waits)
        assert not call.done()
    assert not (await call).replayed, "the twin failed, so this one was carried out"


@pytest.mark.slow  # a lock is waited for for four seconds
async def test_idempotency_wait_for_a_duplicate_times_out(ready: Server) -> None:
    async with twin_under_way(ready):
        refusal = await ready.backend.refusal(send("r"))
        assert refusal.told == ("ABORTED", "REQUEST_IN_FLIGHT")
    assert not (await ready.backend(send("r"))).replayed
