"""The server itself: health, reflection, request ids, deadlines, how it starts and ends."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from syncbeat.v1 import core_pb2, directory_service_pb2, push_service_pb2, sync_service_pb2
from syncbeat_server.errors import ConfigurationError
from syncbeat_server.rpc.pipeline import call_lifecycle
from tests.support.fake_clock import wait_until
from tests.support.process_rules import DEADLINE_S
from tests.support.rpc_server import IMPLEMENTED, KEY, SECRET, Caller, Server, refusal_of, running_server

pytestmark = pytest.mark.rpc

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
OFFERED = {"SyncService", "PushService", "DirectoryService", "AuthService"}
# What the first version of the service promises to have.
FIRST_RPCS = {
    *("GetHint", "WatchHints", "ReportActivity", "PublishChanges", "ListChanges", "BoostScope"),
    *("SendNotification", "GetNotification", "ListDeliveries"),
    *("RegisterDevice", "UnregisterDevice", "GetDevice", "ListDevices"),
    *("AddScopeMembers", "RemoveScopeMembers", "ListScopeMembers", "ListScopes"),
}


async def health(server: Server, service: str = "") -> int:
    answer = await health_pb2_grpc.HealthStub(server.channel).Check(health_pb2.HealthCheckRequest(service=service))
    return int(answer.status)


async def test_server_offers_the_services(server: Server) -> None:
    assert {method.name for method in IMPLEMENTED} >= FIRST_RPCS
    for name in ("", *(f"syncbeat.v1.{service}" for service in OFFERED)):
        assert await health(server, name) == SERVING
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await health(server, "syncbeat.v1.Nothing")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.fixture
async def ready(server: Server) -> Server:
    """Alice is in a scope and has a phone."""
    await server.add("s", "alice")
    await server.register("alice", "phone", "token")
    return server


@pytest.mark.parametrize(
    ("given", "kept"),
    [("my-own-id", True), ("x" * 128, True), ("x" * 129, False), ("", False)],
    ids=["given", "long", "too long", "empty"],
)
async def test_error_carries_the_request_id(ready: Server, given: str, kept: bool) -> None:
    caller = Caller(ready.channel, (*ready.backend.metadata, ("x-request-id", given)))
    request = directory_service_pb2.GetDeviceRequest(user_id="nobody", device_id="d")
    refusals = [await caller.refusal(request), await caller.refusal(push_service_pb2.SendNotificationRequest())]
    for refusal in refusals:
        assert (refusal.metadata["request_id"] == given) is kept
        assert refusal.metadata["request_id"]


async def test_binary_metadata_is_not_a_credential(ready: Server) -> None:
    caller = Caller(ready.channel, (("authorization-bin", str(ready.backend.metadata[0][1]).encode()),))
    refusal = await caller.refusal(directory_service_pb2.ListDevicesRequest())
    assert refusal.told == ("UNAUTHENTICATED", "TOKEN_INVALID")


async def locked_scope(server: Server) -> asyncpg.Connection:
    """Somebody holds the scope, so that a publish waits."""
    conn = await asyncpg.connect(server.urls.admin_url)
    await conn.execute("BEGIN")
    await conn.execute("SELECT 1 FROM scopes WHERE scope = 's' FOR UPDATE")
    return conn


async def until_somebody_waits(conn: asyncpg.Connection) -> None:
    async def waits() -> bool:
        return bool(await conn.fetchval("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"))

    await wait_until(waits)


PUBLISH = sync_service_pb2.PublishChangesRequest(
    changes=[core_pb2.NewChange(scope="s", key="k", merge_patch_json="1")], request_id="r"
)


async def test_deadline_already_over_is_reported(ready: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call_lifecycle.ANSWER_MARGIN_S > 0
    # A busy machine may need longer than that to bring an answer to its caller.
    monkeypatch.setattr(call_lifecycle, "ANSWER_MARGIN_S", 9.0)
    conn = await locked_scope(ready)
    try:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ready.user("alice")(PUBLISH, timeout_s=9.3)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert refusal_of(caught.value).reason == "DEADLINE_EXCEEDED", "by the server, within the caller's deadline"
    finally:
        await conn.close()
    assert not (await ready.user("alice")(PUBLISH)).replayed


async def test_drain_lets_calls_and_streams_end(ready: Server) -> None:
    stub = health_pb2_grpc.HealthStub(ready.channel)
    watched: Any = stub.Watch(health_pb2.HealthCheckRequest())
    assert (await watched.read()).status == SERVING
    streams = [ready.user("alice").watch(device_id="phone"), ready.backend.watch(all_scopes=True)]
    for stream in streams:
        await stream.opened()
    conn = await locked_scope(ready)
    try:
        call = asyncio.create_task(ready.user("alice")(PUBLISH))
        await until_somebody_waits(conn)
        ready.stop.set()
        assert (await watched.read()).status == NOT_SERVING
        for stream in streams:
            checkpoint = await stream.next("checkpoint")
            kind, drain = await stream.read()
            assert kind == "drain", checkpoint
            assert 0.1 <= drain.reconnect_delay.seconds + drain.reconnect_delay.nanos / 1e9 <= 2.1
            assert (await stream.read())[0] == ""
            assert await stream.call.code() is grpc.StatusCode.OK
        assert not call.done()
        assert not ready.task.done(), "it waits for the call under way"
    finally:
        await conn.close()
    assert [head.sequence for head in (await call).heads] == [1]
    watched.cancel()
    await asyncio.wait_for(ready.task, DEADLINE_S)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ready.user("alice")(directory_service_pb2.ListDevicesRequest())
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_listen_address_in_use_stops_the_start(ready: Server, redis_url: str) -> None:
    # Processes of one server share their port (SO_REUSEPORT), so it is another host's address that cannot be had.
    variables: Any = {"LISTEN": "192.0.2.1:1"}
    with pytest.RaisesGroup(pytest.RaisesExc(ConfigurationError, match="SYNCBEAT_LISTEN"), flatten_subgroups=True):
        async with running_server(ready.urls, redis_url, **variables):
            pass


async def test_error_tells_no_secrets(ready: Server) -> None:
    token = ready.user("alice").metadata[0][1]
    forged = Caller(ready.channel, (("authorization", str(token) + "x"),))
    refusal = await forged.refusal(directory_service_pb2.ListDevicesRequest())
    for secret in (str(token), SECRET, str(KEY.key), "alice"):
        assert secret not in refusal.message + str(refusal.metadata)
