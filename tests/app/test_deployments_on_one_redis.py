"""Two deployments, each with its database, on one Redis: each keeps to itself, but for the rate of FCM's project."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import redis.asyncio
from google.protobuf.duration_pb2 import Duration

from syncbeat.v1 import auth_service_pb2, core_pb2, directory_service_pb2, push_service_pb2, sync_service_pb2
from syncbeat_devtools.embedded import EmbeddedStores
from syncbeat_server.app import Stores
from syncbeat_server.app.process import Process, open_process
from syncbeat_server.clock import SystemClock
from syncbeat_server.ops.metrics import Metrics
from syncbeat_server.ops.settings.load import load_settings
from syncbeat_server.ops.settings.server import Role
from syncbeat_server.ops.shutdown_budget import ShutdownBudget
from syncbeat_server.storage.redis.token_bucket import Rate, TokenBucket
from syncbeat_server.sync.hints.load_meter import LoadFigures, LoadLimits
from syncbeat_server.sync.hints.load_pacer import LoadPacer
from tests.support.databases import DatabaseUrls, create_database, drop_database, run_sql
from tests.support.fake_clock import FakeClock, wait_until
from tests.support.process_rules import PATIENT_WITH_OTHERS, UNSWEPT
from tests.support.rpc_server import Server, hear_each_other, running_server

pytestmark = pytest.mark.rpc

NO_REDIS = "unix:///nonexistent/redis.sock"
S = "couple:1"
PHONE = ("default", "ann", "phone")


@pytest.fixture
async def others_urls(
    stores: EmbeddedStores, template: str, database_urls: DatabaseUrls
) -> AsyncIterator[DatabaseUrls]:
    """The database of another deployment."""
    urls = await create_database(stores, f"{database_urls.name}_other", template)
    yield urls
    await drop_database(stores, urls.name)


@asynccontextmanager
async def process(urls: DatabaseUrls, redis_url: str) -> AsyncIterator[Process]:
    """Return what a process of the database's deployment has open."""
    settings = load_settings({"SYNCBEAT_DATABASE_POOL_SIZE": "2"}, env_file=None)
    async with open_process(settings, Stores(urls.app_url, redis_url), ShutdownBudget(1.0), PATIENT_WITH_OTHERS) as one:
        yield one


@pytest.fixture
async def three(
    database_urls: DatabaseUrls, others_urls: DatabaseUrls, redis_url: str
) -> AsyncIterator[tuple[Process, Process, Process]]:
    """Two processes of one deployment, and one of another."""
    async with (
        process(database_urls, redis_url) as one,
        process(database_urls, redis_url) as two,
        process(others_urls, redis_url) as other,
    ):
        yield one, two, other


def pacer(one: Process, clock: FakeClock) -> LoadPacer:
    return LoadPacer(one.bus, clock, LoadLimits(None, 1_000, 8), LoadFigures, Metrics().sync)


async def test_presence_of_streams_is_per_deployment(three: tuple[Process, Process, Process]) -> None:
    one, two, other = three
    await one.presence.mark([PHONE])
    assert [await any_one.presence.live([PHONE]) for any_one in three] == [[True], [True], [False]]
    await other.presence.unmark([PHONE])
    assert await two.presence.live([PHONE]) == [True]


async def test_load_leveling_book_is_per_deployment(
    three: tuple[Process, Process, Process],
) -> None:
    clock = FakeClock()
    pacers = [pacer(one, clock) for one in three]
    for _ in range(50):
        pacers[0].pace(4.0, background=False, now=clock.now().timestamp())
    for one in pacers:
        await one.tick()
    coming = [one._leveler.book.coming_seconds() for one in pacers]
    assert coming[0] == coming[1]
    assert coming[1][1] == 5.0
    assert coming[2] == (0, 0.0)


async def test_rate_limit_of_an_fcm_project_is_shared_by_deployments(three: tuple[Process, Process, Process]) -> None:
    allowances = [TokenBucket(one.bus, Rate(0.001, 100.0, 0.0), SystemClock()) for one in three]
    assert [(await one.acquire("fcm:p", 40, 1.0)).count for one in allowances] == [40, 40, 20]


async def test_database_copy_under_another_name_is_another_deployment(
    stores: EmbeddedStores, database_urls: DatabaseUrls, redis_url: str
) -> None:
    async with process(database_urls, redis_url) as one:
        ours = one.bus.deployment
    copy = await create_database(stores, f"{database_urls.name}_copy", database_urls.name)
    try:
        async with process(copy, redis_url) as one:
            assert one.bus.deployment != ours
    finally:
        await drop_database(stores, copy.name)
    async with process(database_urls, redis_url) as one:
        assert one.bus.deployment == ours, "the same after each start"
    await run_sql(database_urls.app_url, "DELETE FROM app_secrets")
    async with process(database_urls, redis_url) as one:
        assert one.bus.deployment != ours, "as docs/tenants.md says of a copy with the same name"


async def head(server: Server) -> int:
    """Up to where the scope goes, as far as the server knows."""
    asked = await server.backend(sync_service_pb2.GetHintRequest(user_id="ann", device_id="phone"))
    return int(asked.hint.heads[0].sequence)


async def people(server: Server) -> None:
    await server.add(S, "ann")
    await server.register("ann", "phone", "a-token")


async def test_wake_up_is_heard_in_its_deployment_only(
    database_urls: DatabaseUrls, others_urls: DatabaseUrls, redis_url: str
) -> None:
    rules = replace(UNSWEPT, redis=PATIENT_WITH_OTHERS.redis)
    asked = auth_service_pb2.GetTokenCacheStatsRequest()
    async with (
        running_server(database_urls, redis_url, rules=rules) as one,
        running_server(database_urls, redis_url, rules=rules) as two,
        running_server(others_urls, redis_url, rules=rules) as other,
        running_server(others_urls, NO_REDIS, rules=rules) as mute,
    ):
        for server in (one, other):
            await people(server)
        await hear_each_other(one, two)
        await hear_each_other(other)
        assert [await head(server) for server in (two, other)] == [0, 0]
        await mute.publish(S)  # what the other deployment does not know yet, and would if it were woken
        await one.publish(S)

        async def heard() -> bool:
            return await head(two) == 1

        await wait_until(heard)
        # Its own question comes back by the connection on which it would have been woken before.
        assert len((await other.backend(asked)).processes) == 1
        assert await head(other) == 0
        await other.publish(S)
        assert await head(other) == 2


async def test_token_cache_is_flushed_in_its_deployment_only(
    database_urls: DatabaseUrls, others_urls: DatabaseUrls, redis_url: str
) -> None:
    async with (
        running_server(database_urls, redis_url, rules=PATIENT_WITH_OTHERS) as one,
        running_server(database_urls, redis_url, rules=PATIENT_WITH_OTHERS) as two,
        running_server(others_urls, redis_url, rules=PATIENT_WITH_OTHERS) as other,
    ):
        await hear_each_other(one, two)
        await hear_each_other(other)
        for server in (one, two, other):
            await server.user("ann")(directory_service_pb2.ListDevicesRequest())
        forgotten = await one.backend(auth_service_pb2.InvalidateTokenCacheRequest(user_id="ann"))
        assert forgotten.invalidated_count == 2
        assert (await other.backend(auth_service_pb2.GetTokenCacheStatsRequest())).total.size == 1


async def publish(server: Server) -> str:
    """Change the scope and wake the devices: the notification's id."""
    change = core_pb2.NewChange(scope=S, key="k", merge_patch_json="1")
    trigger = core_pb2.SyncTrigger(type="t", dedupe_window=Duration())
    answer = await server.backend(sync_service_pb2.PublishChangesRequest(changes=[change], trigger=trigger))
    return str(answer.notification_id)


async def state_of(server: Server, notification_id: str) -> str:
    """The state of its one delivery, when it is not under way any more."""
    chosen = push_service_pb2.DeliveryFilter(notification_id=notification_id)
    (found,) = (await server.backend(push_service_pb2.ListDeliveriesRequest(filter=chosen))).deliveries
    state = push_service_pb2.DeliveryState.Name(found.state).removeprefix("DELIVERY_STATE_")
    return "" if state in ("PENDING", "IN_FLIGHT") else state


async def test_stream_holds_back_pushes_of_its_deployment_only(
    database_urls: DatabaseUrls, others_urls: DatabaseUrls, redis_url: str
) -> None:
    grace: Any = {"STREAM_GRACE_S": "60"}
    async with (
        running_server(database_urls, redis_url, Role.ALL, **grace) as one,
        running_server(others_urls, redis_url, Role.ALL, **grace) as other,
        redis.asyncio.Redis.from_url(redis_url) as client,
    ):
        for server in (one, other):
            await people(server)
        stream = one.user("ann").watch(device_id="phone")
        await stream.opened()

        async def marked() -> bool:
            return bool(await client.keys("syncbeat:*:streams:*"))

        await wait_until(marked)
        for server, wanted in ((one, {"HELD", "CANCELLED"}), (other, {"SENT"})):
            look = partial(state_of, server, await publish(server))
            assert await wait_until(look) in wanted
        found: list[Any] = await client.keys()
        names = [name.decode().split(":") for name in found]
    deployments = {name[2] for name in names if name[1] == "rate"}
    assert len(deployments) == 2, "what is no project's rate is a deployment's own"
    assert {name[1] for name in names} <= {"rate", *deployments}


async def test_presence_survives_the_end_of_one_of_two_streams(database_urls: DatabaseUrls, redis_url: str) -> None:
    grace: Any = {"STREAM_GRACE_S": "60"}
    async with (
        running_server(database_urls, redis_url, Role.ALL, **grace) as one,
        running_server(database_urls, redis_url, **grace) as two,
        redis.asyncio.Redis.from_url(redis_url) as client,
    ):
        await people(one)

        async def holders() -> int:
            return sum([await client.zcard(key) for key in await client.keys("syncbeat:*:streams:*")])

        async def both() -> bool:
            return await holders() == 2

        streams = [server.user("ann").watch(device_id="phone") for server in (one, two)]
        for stream in streams:
            await stream.opened()
        await wait_until(both)
        streams[0].call.cancel()

        async def left() -> bool:
            return await holders() == 1

        await wait_until(left)
        assert await wait_until(partial(state_of, one, await publish(one))) in {"HELD", "CANCELLED"}
