"""Connections of the Python client: it leaves those that are silent, and has as many as its streams need."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import grpc
import pytest

from syncbeat import ClientRule, Session, SessionTokens, SmartSync, SyncbeatClient, explain
from syncbeat.client_options import DEFAULT_RULE
from syncbeat.v1 import auth_service_pb2
from syncbeat.v1 import sync_service_pb2 as pb
from tests.support.client_servers import (
    WAIT_S,
    Hold,
    Refusal,
    Scripted,
    Stream,
    Until,
    client_of,
    real_server,
    scripted_server,
    user_token,
)
from tests.support.databases import DatabaseUrls
from tests.support.fake_clock import wait_until
from tests.support.phones import DeviceClock, at, page, polled, reported, row
from tests.support.tcp_relays import Path, Relay, relayed

pytestmark = pytest.mark.rpc

SHORT_S = 1.0  # the deadline of calls that get no answer
HEARTBEAT_S = 0.4
PROXY_STREAMS = 100  # what proxies let through on a connection, nginx and Envoy among them


# Connections are replaced as often as they are found silent, streams opened again at once.
IMPATIENT = ClientRule(first_delay_s=0.0, connection_spacing_s=0.0, least_heartbeat_s=0.1)


@asynccontextmanager
async def reached(
    timeout_s: float = SHORT_S, rule: ClientRule = DEFAULT_RULE
) -> AsyncIterator[tuple[Scripted, Relay, SyncbeatClient]]:
    """A scripted server, and a client that reaches it through a relay."""
    async with (
        scripted_server(options=[("grpc.max_concurrent_streams", PROXY_STREAMS)]) as (script, address),
        relayed(address) as relay,
        client_of(relay.address, timeout_s=timeout_s, rule=rule) as client,
    ):
        yield script, relay, client


async def ask(client: SyncbeatClient) -> str:
    """Make a call: its status."""
    try:
        await client.sync.GetHint(pb.GetHintRequest(device_id="d"))
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"


def held(sequence: int, count: int) -> list[Stream]:
    """Streams that bring one change, and then nothing."""
    return [[event(sequence), Hold()] for _ in range(count)]


async def closed(*paths: Path) -> None:
    """Return when a client has closed these connections; gRPC does when the calls they had are collected."""
    await wait_until(lambda: gc.collect() >= 0 and all(path.client_left.is_set() for path in paths), what="closed")


async def sequence_of(call: Any) -> int:
    """The sequence of the next change of a raw stream."""
    async with asyncio.timeout(WAIT_S):
        return int((await call.read()).change.sequence)


def event(sequence: int) -> pb.WatchHintsResponse:
    return pb.WatchHintsResponse(change=row(sequence))


async def test_reconnect_after_two_calls_without_an_answer() -> None:
    async with reached(rule=IMPATIENT) as (script, relay, client):
        script.prepare("GetHint", *[polled(30)] * 9)
        assert await ask(client) == "OK"
        (dead,) = relay.swallow()
        assert [await ask(client) for _ in range(4)] == ["DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED", "OK", "OK"]
        assert len(relay.paths) == 2
        # Nothing is under way on the old one: it is closed.
        await closed(dead)


async def test_reconnect_is_not_triggered_by_interrupted_silence() -> None:
    async with reached(rule=IMPATIENT) as (script, relay, client):
        script.prepare("GetHint", Hold(), polled(30), Hold(), Refusal(grpc.StatusCode.NOT_FOUND, "NOT_FOUND"), Hold())
        script.prepare("GetHint", polled(30))
        found = [await ask(client) for _ in range(6)]
        assert found == ["DEADLINE_EXCEEDED", "OK", "DEADLINE_EXCEEDED", "NOT_FOUND", "DEADLINE_EXCEEDED", "OK"]
        assert len(relay.paths) == 1


async def test_reconnect_is_not_triggered_by_server_deadlines() -> None:
    late = Refusal(grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")
    async with reached(timeout_s=WAIT_S, rule=IMPATIENT) as (script, relay, client):
        script.prepare("GetHint", *[late] * 4, polled(30))
        assert [await ask(client) for _ in range(5)] == ["DEADLINE_EXCEEDED"] * 4 + ["OK"]
        assert len(relay.paths) == 1


async def test_reconnect_is_not_triggered_by_cancelled_calls() -> None:
    async with reached(timeout_s=WAIT_S, rule=IMPATIENT) as (script, relay, client):
        script.prepare("GetHint", *[Hold()] * 4, polled(30))

        def tried(count: int) -> bool:
            return len(script.attempts["GetHint"]) == count

        for count in range(1, 5):
            call = asyncio.ensure_future(ask(client))
            await wait_until(partial(tried, count))
            call.cancel()
            await asyncio.wait({call})
        assert await ask(client) == "OK"
        assert len(relay.paths) == 1


@pytest.mark.parametrize(("spacing_s", "connections"), [(ClientRule().connection_spacing_s, 1), (0.0, 11)])
async def test_reconnect_attempts_are_spaced(spacing_s: float, connections: int) -> None:
    rule = ClientRule(connection_spacing_s=spacing_s)
    async with reached(timeout_s=0.05, rule=rule) as (script, relay, client):
        script.prepare("GetHint", *[Hold()] * 99)
        assert {await ask(client) for _ in range(20)} == {"DEADLINE_EXCEEDED"}
        await ask(client)
        assert len(relay.paths) == connections


async def test_reconnect_of_watch_when_its_connection_is_silent() -> None:
    async with reached(rule=IMPATIENT) as (script, relay, client):
        script.answers["WatchHints"] = [*held(1, 100)]
        async with client.watch(heartbeat_s=HEARTBEAT_S) as watch, asyncio.timeout(WAIT_S):
            assert isinstance(first := await anext(watch), pb.Change)
            dead = relay.swallow()
            script.answers["WatchHints"] = [*held(2, 100)]
            assert isinstance(second := await anext(watch), pb.Change)
            assert (first.sequence, second.sequence) == (1, 2)
            # The call on the old one was given up, and that is closed with it.
            await closed(*dead)


async def test_reconnect_of_smart_sync_polls_when_its_connection_is_dead() -> None:
    clock, applied = DeviceClock(), []

    async def apply(batch: object) -> None:
        applied.append(batch)

    async with reached(rule=IMPATIENT) as (script, relay, client):
        script.prepare("ReportActivity", reported(30))
        script.prepare("GetHint", *[polled(30, at(1))] * 9)
        script.prepare("ListChanges", page(1))
        async with SmartSync(client, "phone", on_changes=apply, clock=clock, streams=False):
            await clock.quiet()
            relay.swallow()
            await clock.travel(210)
        assert len(applied) == 1
        assert len(relay.paths) == 2


async def test_reconnect_leaves_calls_in_flight_to_their_own_deadline() -> None:
    go = asyncio.Event()
    async with reached(timeout_s=WAIT_S, rule=IMPATIENT) as (script, relay, client):
        script.prepare("WatchHints", [event(1), Until(go), event(2)], [Hold()])
        call = client.sync.WatchHints(pb.WatchHintsRequest())
        assert await sequence_of(call) == 1
        # Another stream of the same connection hears nothing, and is given up.
        async with client.watch(heartbeat_s=HEARTBEAT_S) as watch, asyncio.timeout(WAIT_S):
            script.answers["WatchHints"] += held(3, 100)
            assert isinstance(await anext(watch), pb.Change)
            assert len(relay.paths) >= 2
            assert relay.paths[0].is_open
            go.set()
            assert await sequence_of(call) == 2
            assert await call.read() is grpc.aio.EOF
            del call
            await closed(relay.paths[0])
            assert relay.paths[-1].is_open


async def test_reconnect_lets_session_renew_its_token() -> None:
    now = datetime.now(UTC)
    session = Session(SessionTokens("s", "access", now + timedelta(hours=1), "refresh", now + timedelta(days=1)))
    fresh = auth_service_pb2.RefreshSessionResponse(session_id="s", access_token="fresh", refresh_token="r2")
    fresh.access_expire_time.FromDatetime(now + timedelta(hours=1))
    fresh.refresh_expire_time.FromDatetime(now + timedelta(days=1))
    async with (
        scripted_server() as (script, address),
        relayed(address) as relay,
        client_of(relay.address, token=session, timeout_s=SHORT_S, rule=IMPATIENT) as client,
        session,
    ):
        script.prepare("GetHint", polled(30))
        assert await ask(client) == "OK"
        relay.swallow()
        assert [await ask(client) for _ in range(2)] == ["DEADLINE_EXCEEDED"] * 2
        script.prepare("GetHint", Refusal(grpc.StatusCode.UNAUTHENTICATED, "TOKEN_EXPIRED"), polled(30))
        script.prepare("RefreshSession", fresh)
        assert await ask(client) == "OK"
        assert script.attempts["GetHint"][-1].authorization == "Bearer fresh"


async def test_close_ends_abandoned_connections_too() -> None:
    async with reached(rule=IMPATIENT) as (script, relay, client):
        script.prepare("WatchHints", [event(1), Hold()])
        call = client.sync.WatchHints(pb.WatchHintsRequest())
        await call.read()
        relay.swallow()
        script.prepare("GetHint", polled(30))
        assert [await ask(client) for _ in range(3)] == ["DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED", "OK"]
        assert [path.is_open for path in relay.paths] == [True, True]
        await client.close()
        assert await call.code() is grpc.StatusCode.CANCELLED
        del call
        await closed(*relay.paths)


async def test_connection_pool_grows_past_proxy_stream_limits() -> None:
    async with reached(timeout_s=WAIT_S) as (script, relay, client):
        script.prepare("WatchHints", *held(1, 250))
        script.prepare("GetHint", *[polled(30)] * 20)
        async with asyncio.timeout(WAIT_S):
            calls = [client.sync.WatchHints(pb.WatchHintsRequest()) for _ in range(250)]
            await asyncio.gather(*(call.read() for call in calls))
            assert [await ask(client) for _ in range(20)] == ["OK"] * 20
            assert len(relay.paths) == 3
            for call in calls:
                call.cancel()
            # Their places are free again; a server that has not heard so yet is asked once more.
            script.prepare("WatchHints", *held(1, 1_000))
            watches = [client.watch() for _ in range(250)]
            await asyncio.gather(*map(anext, watches))
            assert len(relay.paths) == 3
            await asyncio.gather(*(watch.close() for watch in watches))


async def test_connection_pool_answers_calls_beyond_a_connection() -> None:
    async with reached(timeout_s=WAIT_S) as (script, relay, client):
        script.prepare("GetHint", *[Hold()] * (PROXY_STREAMS + 50), polled(30))
        waiting = [asyncio.ensure_future(ask(client)) for _ in range(PROXY_STREAMS + 50)]
        await wait_until(lambda: len(script.attempts["GetHint"]) == len(waiting), what="all have reached the server")
        assert await ask(client) == "OK"
        assert len(relay.paths) == 2
        for call in waiting:
            call.cancel()
        await asyncio.wait(waiting)


async def test_reconnect_of_streams_on_several_silent_connections() -> None:
    async with reached(rule=IMPATIENT) as (script, relay, client):
        script.answers["WatchHints"] = [*held(1, 1_000)]
        watches = [client.watch(heartbeat_s=1.0) for _ in range(200)]
        async with asyncio.timeout(2 * WAIT_S):
            await asyncio.gather(*map(anext, watches))
            dead = relay.swallow()
            script.answers["WatchHints"] = [*held(2, 1_000)]
            await asyncio.gather(*map(anext, watches))
        assert [len(list(watch.cursors)) for watch in watches] == [1] * 200
        assert {cursor.sequence for watch in watches for cursor in watch.cursors} == {2}
        assert len(dead) == 2
        assert 4 <= len(relay.paths) <= 6  # as many once more, and not one for each stream
        await asyncio.gather(*(watch.close() for watch in watches))


async def test_connection_pool_of_a_thousand_streams_on_a_real_server(
    database_urls: DatabaseUrls, redis_url: str
) -> None:
    async with (
        real_server(database_urls, redis_url, STREAMS_PER_USER="2000") as address,
        client_of(address, token=user_token("ann")) as client,
    ):
        calls = [client.sync.WatchHints(pb.WatchHintsRequest()) for _ in range(1_005)]
        first = await asyncio.gather(*(call.read() for call in calls))
        assert {answer.WhichOneof("event") for answer in first if isinstance(answer, pb.WatchHintsResponse)} == {"hint"}
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.sync.GetHint(pb.GetHintRequest(device_id="nobody has it"))
        assert explain(caught.value).code is grpc.StatusCode.PERMISSION_DENIED
        for call in calls:
            call.cancel()
