"""Clients that open no window: nobody waits for them, and nothing goes on for them that has ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from syncbeat.v1 import auth_service_pb2, core_pb2, directory_service_pb2, push_service_pb2, sync_service_pb2
from syncbeat_server.app.process_rules import ProcessRules
from syncbeat_server.rpc.connection_limits import ServerRule
from syncbeat_server.rpc.servicers import health
from tests.support.databases import DatabaseUrls
from tests.support.fake_clock import ahead, wait_until
from tests.support.process_rules import PATIENT
from tests.support.raw_http2 import RawConnection, grpc_message, raw_connection
from tests.support.rpc_server import BACKEND, METHODS, Server, path_of, running_server

pytestmark = pytest.mark.rpc

PROMISED_S = 5.0
DRAIN_S = 6.0
CHECK, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
WATCH_HINTS = path_of(METHODS["WatchHintsRequest"])
WATCH_DELIVERIES = path_of(METHODS["WatchDeliveriesRequest"])


@pytest.fixture
async def server(database_urls: DatabaseUrls, redis_url: str, rules: ProcessRules) -> AsyncIterator[Server]:
    """A server that drains for some seconds."""
    async with running_server(database_urls, redis_url, rules=rules, DRAIN_S=str(DRAIN_S)) as running:
        await running.add("s", "alice")
        await running.register("alice", "phone", "token")
        yield running


def watch(raw: RawConnection, token: str, **fields: Any) -> int:
    request = sync_service_pb2.WatchHintsRequest(device_id="phone", **fields)
    return raw.start(WATCH_HINTS, grpc_message(request.SerializeToString()), [("authorization", f"Bearer {token}")])


def token_of(server: Server, user: str, life_s: float = 3600) -> str:
    return str(server.user(user, life_s).metadata[0][1]).removeprefix("Bearer ")


def health_of(server: Server) -> Any:
    return health_pb2_grpc.HealthStub(server.channel)


async def ends_in_time(server: Server, raw: RawConnection, stream: int) -> None:
    """A stream ends within 5 s. Other calls go on meanwhile: gRPC holds on to the newest call of a server."""

    async def is_over() -> bool:
        await health_of(server).Check(health_pb2.HealthCheckRequest())
        return raw.answers[stream].is_over

    await wait_until(is_over, timeout_s=PROMISED_S)


async def test_slow_reader_stream_is_ended_by_revocation(server: Server) -> None:
    async with raw_connection(server.address, window=0) as raw:
        stream = watch(raw, token_of(server, "alice"))
        await wait_until(lambda: raw.answers[stream].headers)
        await server.backend(auth_service_pb2.RevokeUserRequest(user_id="alice", reason="lost phone"))
        await ends_in_time(server, raw, stream)
        assert not raw.answers[stream].data


@pytest.mark.parametrize(
    "shut_out", [directory_service_pb2.DisableUserRequest, directory_service_pb2.DeleteUserRequest]
)
async def test_slow_reader_stream_is_ended_when_its_user_is_shut_out(server: Server, shut_out: Any) -> None:
    async with raw_connection(server.address, window=0) as raw:
        stream = watch(raw, token_of(server, "alice"))
        await wait_until(lambda: raw.answers[stream].headers)
        await server.backend(shut_out(user_id="alice"))
        await ends_in_time(server, raw, stream)


async def test_slow_reader_stream_is_ended_by_token_expiry(server: Server) -> None:
    async with raw_connection(server.address, window=0) as raw:
        stream = watch(raw, token_of(server, "alice", 2))
        await wait_until(lambda: raw.answers[stream].headers)
        await ends_in_time(server, raw, stream)


async def test_slow_reader_with_valid_access_keeps_its_stream(server: Server) -> None:
    async with raw_connection(server.address, window=0) as raw:
        stream = watch(raw, token_of(server, "alice"))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(raw.closed.wait(), 3.5)
        assert not raw.answers[stream].is_over
        raw.open_window(stream, 100_000)
        await wait_until(lambda: raw.answers[stream].data)
        assert not raw.answers[stream].is_over


async def test_slow_reader_that_resumes_learns_the_reason(server: Server) -> None:
    async with raw_connection(server.address, window=0) as raw:
        stream = watch(raw, token_of(server, "alice"))
        await wait_until(lambda: raw.answers[stream].headers)
        await server.backend(auth_service_pb2.RevokeUserRequest(user_id="alice", reason="lost phone"))
        raw.open_window(stream, 100_000)
        await ends_in_time(server, raw, stream)
        assert raw.answers[stream].status == "16"


async def test_slow_reader_of_deliveries_holds_up_no_other(server: Server) -> None:
    async with AsyncExitStack() as stack:
        deaf = await stack.enter_async_context(raw_connection(server.address, window=0))
        for _ in range(3):
            deaf.start(WATCH, grpc_message(b""))
        await health_of(server).Check(health_pb2.HealthCheckRequest())
        good = health_of(server).Watch(health_pb2.HealthCheckRequest(service="syncbeat.v1.SyncService"))
        assert (await asyncio.wait_for(good.read(), 5)).status == SERVING
        began = time.monotonic()
        server.stop.set()
        assert (await asyncio.wait_for(good.read(), 5)).status == NOT_SERVING
        assert await asyncio.wait_for(good.read(), 5) is grpc.aio.EOF
        await asyncio.wait_for(server.task, DRAIN_S)
        assert time.monotonic() - began < DRAIN_S


async def test_slow_reader_does_not_hold_up_a_drain(server: Server) -> None:
    request = push_service_pb2.SendNotificationRequest(scope="s", notification=core_pb2.Notification(title="x"))
    sent = await server.backend(request)
    deliveries = push_service_pb2.WatchDeliveriesRequest(notification_id=sent.notification_id)
    async with raw_connection(server.address, window=0) as raw:
        streams = [
            watch(raw, token_of(server, "alice")),
            watch(raw, BACKEND, all_scopes=True),
            raw.start(WATCH, grpc_message(b"")),
            raw.start(
                WATCH_DELIVERIES,
                grpc_message(deliveries.SerializeToString()),
                [("authorization", f"Bearer {BACKEND}")],
            ),
        ]
        await wait_until(lambda: all(raw.answers[stream].headers for stream in streams))
        began = time.monotonic()
        server.stop.set()
        await asyncio.wait_for(server.task, 2 * DRAIN_S)
        assert time.monotonic() - began < DRAIN_S


async def test_health_watch_limit_per_connection(server: Server) -> None:
    async with raw_connection(server.address) as raw, raw_connection(server.address) as other:
        streams = [raw.start(WATCH, grpc_message(b"")) for _ in range(100)]
        most = health.MAX_WATCHES_PER_CONNECTION
        await wait_until(lambda: sum(raw.answers[stream].is_over for stream in streams) == 100 - most)
        assert {raw.answers[stream].status for stream in streams[most:]} == {"8"}
        await wait_until(lambda: all(raw.answers[stream].data for stream in streams[:most]))
        elsewhere = other.start(WATCH, grpc_message(b""))
        await wait_until(lambda: other.answers[elsewhere].data)
        raw.reset(streams[0])
        again = raw.start(WATCH, grpc_message(b""))
        await wait_until(lambda: raw.answers[again].data)


@pytest.mark.parametrize("rules", [replace(PATIENT, server=ServerRule(max_health_watches=4))], ids=["four"])
async def test_health_watch_limit_in_all(server: Server) -> None:
    async with raw_connection(server.address) as raw, raw_connection(server.address) as other:
        streams = [(one, one.start(WATCH, grpc_message(b""))) for one in (raw, other) for _ in range(4)]
        await wait_until(lambda: sum(one.answers[stream].is_over for one, stream in streams) == 4)
        stream = raw.start(CHECK, grpc_message(b""))
        await wait_until(lambda: raw.answers[stream].status == "0")


async def test_slow_reader_of_health_is_dropped(server: Server) -> None:
    async with raw_connection(server.address, window=0) as raw:
        stream = raw.start(WATCH, grpc_message(b""))
        await wait_until(lambda: raw.answers[stream].headers)
        with ahead(health.WRITE_TIMEOUT_S):
            await wait_until(
                lambda: raw.answers[stream].is_over or health_of(server).Check(health_pb2.HealthCheckRequest()).done()
            )


async def test_health_watch_of_an_unknown_service_is_not_found(server: Server) -> None:
    asked = health_pb2.HealthCheckRequest(service="nothing")
    watched = health_of(server).Watch(asked)
    assert (await watched.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await health_of(server).Check(asked)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    watched.cancel()
