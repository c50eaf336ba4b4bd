"""Hints from memory: what is done on one server is seen there at once, and on another as soon as it hears of it."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest
import redis

from syncbeat.v1 import core_pb2
from syncbeat.v1 import directory_service_pb2 as directory
from syncbeat.v1 import sync_service_pb2 as pb
from syncbeat_devtools.embedded import EmbeddedStores
from tests.support.fake_clock import wait_until
from tests.support.process_rules import UNSWEPT
from tests.support.rpc_server import METHODS, Server, refusal_of, running_server

pytestmark = pytest.mark.rpc

S = "couple:1"
ASK = pb.GetHintRequest(user_id="alice", device_id="phone", explain=True)
NO_REDIS = "unix:///nonexistent/redis.sock"


@pytest.fixture
async def ready(server: Server) -> Server:
    """Alice has a phone and is a member of one scope."""
    await server.add(S, "alice")
    await server.register("alice", "phone", "a-token")
    return server


async def told(server: Server) -> Any:
    """Return what is told of alice's phone: the heads, what is known of its activity; or why nothing.

    Not how long to wait: no two calls are told the same moment.
    """
    try:
        hint = (await server.backend(ASK)).hint
    except grpc.aio.AioRpcError as error:
        return refusal_of(error).told
    activity = re.search(r"attention .* \((\w+), idle", hint.explanation)
    assert activity is not None
    return [(head.scope, head.sequence) for head in hint.heads], activity[1]


async def publish(server: Server) -> None:
    await server.publish(S)


async def leave(server: Server) -> None:
    await server.backend(directory.RemoveScopeMembersRequest(scope=S, user_ids=["alice"]))


async def join(server: Server) -> None:
    await server.add("another", "alice")


async def unregister(server: Server) -> None:
    await server.user("alice")(directory.UnregisterDeviceRequest(device_id="phone"))


async def report(server: Server) -> None:
    activity = pb.Activity(state=pb.ACTIVITY_STATE_BACKGROUND, battery_low=True)
    await server.user("alice")(pb.ReportActivityRequest(device_id="phone", activity=activity))


async def erase(server: Server) -> None:
    await server.backend(directory.DeleteUserRequest(user_id="alice"))


each_change = pytest.mark.parametrize("change", [publish, leave, join, unregister, report, erase])
Change = Callable[[Server], Awaitable[None]]


@each_change
async def test_view_cache_shows_local_changes_at_once(ready: Server, change: Change) -> None:
    await publish(ready)
    before = await told(ready)
    await change(ready)
    assert await told(ready) != before


@each_change
@pytest.mark.parametrize("rules", [UNSWEPT], ids=["unswept"])
async def test_view_cache_hears_changes_of_another_server(ready: Server, redis_url: str, change: Change) -> None:
    async with running_server(ready.urls, redis_url, rules=UNSWEPT) as second:
        await publish(ready)
        before = await told(second)
        await change(ready)

        async def heard() -> bool:
            return bool(await told(second) != before)

        await wait_until(heard)


async def test_view_cache_is_bypassed_without_redis(ready: Server) -> None:
    async with running_server(ready.urls, NO_REDIS) as deaf:
        for change in (publish, report, join, leave, unregister):
            before = await told(deaf)
            await change(ready)
            assert await told(deaf) != before, change.__name__


@pytest.mark.parametrize("rules", [UNSWEPT], ids=["unswept"])
async def test_view_cache_answers_without_the_database(ready: Server, stores: EmbeddedStores, redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        await wait_until(lambda: client.pubsub_channels("syncbeat:*:devices"))
    heads, _ = await told(ready)

    async def answered_without_the_database() -> bool:
        # The first sweep and the wake-ups of what was done before still come, and what they speak of is kept no longer.
        if (await told(ready))[0] != heads:
            return False
        stores.kill_postgres()
        try:
            return [(await told(ready))[0] for _ in range(2)] == [heads, heads]
        finally:
            stores.start_postgres()

    await wait_until(answered_without_the_database)
    change = core_pb2.NewChange(scope=S, key="k", merge_patch_json="1")
    request = pb.PublishChangesRequest(changes=[change]).SerializeToString()

    async def published() -> bool:
        return await ready.backend.outcome(METHODS["PublishChangesRequest"], request) is None

    await wait_until(published)
    assert (await told(ready))[0] == [(S, 1)]
