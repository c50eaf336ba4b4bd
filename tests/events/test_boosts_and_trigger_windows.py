"""A boost holds a scope's devices at a tier; the window of a trigger is by what it shows."""

from __future__ import annotations

import time

import asyncpg
import grpc
import pytest
from google.protobuf import duration_pb2

from syncbeat.v1 import core_pb2, sync_service_pb2
from tests.support.rpc_server import Server, refusal_of

pytestmark = pytest.mark.rpc

S = "couple:1"


@pytest.fixture
async def ready(server: Server) -> Server:
    """A couple, and a phone of alice's."""
    await server.add(S, "alice", "bob")
    await server.register("alice", "phone", "token-1")
    return server


async def test_boost_holds_the_devices_of_a_scope_at_a_tier(ready: Server) -> None:
    alice, minute = ready.user("alice"), duration_pb2.Duration(seconds=60)
    away = sync_service_pb2.Activity(state=sync_service_pb2.ACTIVITY_STATE_BACKGROUND)
    before = (await alice(sync_service_pb2.GetHintRequest(device_id="phone", activity=away))).hint.poll_interval
    boost = sync_service_pb2.BoostScopeRequest(scope=S, priority=sync_service_pb2.PRIORITY_IMMEDIATE, duration=minute)
    began = int(time.time())
    answer = await ready.backend(boost)
    assert began <= answer.expire_time.seconds - 60 <= time.time()
    hint = (await alice(sync_service_pb2.GetHintRequest(device_id="phone", activity=away))).hint
    assert 9 <= hint.poll_interval.seconds <= 10 < before.seconds
    assert hint.priority == sync_service_pb2.PRIORITY_IMMEDIATE
    boost.scope = "nowhere"
    for caller, told in ((ready.backend, "NOT_FOUND"), (alice, "ACCESS_DENIED")):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await caller(boost)
        assert refusal_of(caught.value).told[1] == told


@pytest.mark.parametrize(("shown", "window_s"), [(False, 30), (True, 300)])
async def test_dedupe_window_of_a_silent_trigger_is_shorter(ready: Server, shown: bool, window_s: int) -> None:
    notification = core_pb2.Notification(title="news") if shown else None
    trigger = core_pb2.SyncTrigger(type="news", notification=notification)
    change = core_pb2.NewChange(scope=S, key="a", merge_patch_json="1")
    await ready.backend(sync_service_pb2.PublishChangesRequest(changes=[change], trigger=trigger))
    connection = await asyncpg.connect(ready.urls.admin_url)
    try:
        held = await connection.fetch("SELECT DISTINCT extract(epoch FROM duration)::int FROM dedupe_windows")
    finally:
        await connection.close()
    assert [row[0] for row in held] == [window_s]
