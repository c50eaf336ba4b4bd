"""Tests GetStatus over the wire: figures that equal what was called, all processes of two, and stores that are away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import redis
from google.protobuf.json_format import MessageToJson

from syncbeat.v1 import core_pb2, directory_service_pb2, push_service_pb2, sync_service_pb2
from syncbeat.v1 import ops_service_pb2 as pb
from syncbeat_devtools.embedded import EmbeddedStores
from syncbeat_server import __version__
from syncbeat_server.app.process_rules import StatusRules
from syncbeat_server.ops.settings.server import Role
from syncbeat_server.status.model import Objective
from syncbeat_server.status.process_board import BoardRule
from syncbeat_server.storage.schema_check import read_migrations
from tests.support.databases import DatabaseUrls
from tests.support.fake_clock import wait_until
from tests.support.process_rules import PATIENT
from tests.support.rpc_server import BACKEND, OPERATOR, SECRET, SESSION_KEYS, Server, entry, running_server

pytestmark = pytest.mark.rpc

HINT, SEND = "syncbeat.v1.SyncService/GetHint", "syncbeat.v1.PushService/SendNotification"
DENIED = ("PERMISSION_DENIED", "ACCESS_DENIED")
# Written often, so that nobody waits for it, and believed for longer than a busy machine pauses.
RULES = replace(PATIENT, status=StatusRules(board=BoardRule(every_s=0.1, kept_s=15.0)))
STATUS = pb.GetStatusRequest()


@pytest.fixture
async def pair(database_urls: DatabaseUrls, redis_url: str) -> AsyncIterator[tuple[Server, Server]]:
    """Two servers of one deployment."""
    async with (
        running_server(database_urls, redis_url, rules=RULES) as one,
        running_server(database_urls, redis_url, rules=RULES) as two,
    ):
        yield one, two


async def told(server: Server, matches: Callable[[Any], bool]) -> Any:
    """Return the status once it is as wanted."""

    async def found() -> Any:
        answer = await server.backend(STATUS)
        return answer if matches(answer) else None

    return await wait_until(found)


def calls_of(status: Any, method: str) -> int:
    return sum(one.calls for one in status.rpcs if one.method == method)


def guards_pushes(process: Any) -> bool:
    return any(one.name == "push:default" for one in process.breakers)


def lists(count: int) -> Callable[[Any], bool]:
    return lambda answer: len(answer.processes) == count


async def hint(server: Server, count: int) -> None:
    for _ in range(count):
        await server.user("ann")(sync_service_pb2.GetHintRequest(device_id="phone"))


async def test_status_figures_equal_what_was_called(server: Server) -> None:
    await server.register("ann", "phone", "a-token")
    await hint(server, 7)
    await server.user("ann").refusal(sync_service_pb2.GetHintRequest(device_id="none"))
    await server.backend.refusal(push_service_pb2.SendNotificationRequest())
    answer = await server.operator(STATUS)
    rpcs = {one.method: one for one in answer.rpcs}
    assert (rpcs[HINT].calls, rpcs[HINT].errors, rpcs[HINT].error_rate) == (8, 0, 0.0)
    assert (rpcs[SEND].calls, rpcs[SEND].errors) == (1, 0)
    assert rpcs[HINT].rate == pytest.approx(8 / (answer.rpc_window.ToMicroseconds() / 1e6), rel=1e-3)
    spans = [one.ToMicroseconds() for one in (rpcs[HINT].p50, rpcs[HINT].p95, rpcs[HINT].p99)]
    assert 0 < spans[0] <= spans[1] <= spans[2] <= 10_000_000
    assert list(rpcs) == sorted(rpcs)
    assert "syncbeat.v1.OpsService/GetStatus" not in rpcs, "this call has not ended"
    caches = {one.name: one for one in answer.caches}
    assert caches.keys() == {"tokens", "views"}
    assert caches["views"].hits + caches["views"].misses >= 1
    assert (answer.token_cache.hits, answer.token_cache.size) == (caches["tokens"].hits, caches["tokens"].entries)
    assert caches["tokens"].hit_rate == pytest.approx(
        caches["tokens"].hits / (caches["tokens"].hits + caches["tokens"].misses)
    )
    assert answer.limits.shared
    (own,) = answer.processes
    assert (own.process, own.role, own.start_time) == (answer.process, "rpc", answer.start_time)
    assert calls_of(own, HINT) == 8


async def test_status_tells_build_migrations_pool_and_breakers(server: Server) -> None:
    answer = await server.backend(STATUS)
    newest = read_migrations()[-1].version
    assert (answer.migrations.applied, answer.migrations.known) == (newest, newest)
    assert answer.build_version == answer.build.version == __version__
    assert answer.build.python.startswith("3.")
    assert answer.build.grpc.count(".") == 2
    assert {one.name: one.state for one in answer.breakers} == {
        "postgres": pb.BREAKER_STATE_CLOSED,
        "redis": pb.BREAKER_STATE_CLOSED,
    }
    assert not any(one.HasField("opened_time") or one.failures for one in answer.breakers)
    pool = answer.pool
    assert pool.max_size == 4
    assert 1 <= pool.size == pool.idle + pool.in_use <= 4


async def test_status_counts_server_connections_as_pg_stat_activity(server: Server) -> None:
    conn = await asyncpg.connect(server.urls.app_url)
    try:
        await conn.execute("BEGIN")
        answer = await server.backend(STATUS)
        connections = dict(answer.pool.server_connections)
        assert connections["idle in transaction"] == 1
        assert connections["active"] >= 1, "that of the question itself"
    finally:
        await conn.close()


async def test_status_counts_open_streams_and_their_messages(server: Server) -> None:
    await server.add("room", "ann")
    await server.register("ann", "phone")
    stream = server.user("ann").watch(device_id="phone")
    await stream.opened()
    answer = await server.backend(STATUS)
    assert answer.streams.open == 1
    assert answer.streams.signals_per_second > 0
    stream.call.cancel()
    await told(server, lambda one: one.streams.open == 0)


async def test_status_counts_the_push_queue_of_the_app(server: Server) -> None:
    for user in ("ann", "bob"):
        await server.register(user, "phone", f"token-{user}")
    empty = await server.backend(STATUS)
    assert not empty.push_queue.counts
    assert not empty.push_queue.HasField("oldest_pending_age")
    await server.backend(  # nobody delivers here
        push_service_pb2.SendNotificationRequest(
            user_ids=core_pb2.UserIds(ids=["ann", "bob"]), notification=core_pb2.Notification(title="t")
        )
    )
    queue = (await server.backend(STATUS)).push_queue
    assert [(one.state, one.count) for one in queue.counts] == [(push_service_pb2.DELIVERY_STATE_PENDING, 2)]
    assert not queue.truncated
    late = await told(server, lambda one: one.push_queue.HasField("oldest_pending_age"))
    assert late.push_queue.oldest_pending_age.ToMicroseconds() > 0


async def test_status_lists_all_processes_from_either(pair: tuple[Server, Server]) -> None:
    one, two = pair
    await one.register("ann", "phone", "a-token")
    await hint(two, 5)
    for server in pair:
        answer = await told(
            server, lambda found: len(found.processes) == 2 and 5 in [calls_of(each, HINT) for each in found.processes]
        )
        assert sorted(calls_of(each, HINT) for each in answer.processes) == [0, 5]
        assert calls_of(answer, HINT) == (5 if server is two else 0)
        assert len({each.start_time.ToJsonString() for each in answer.processes}) == 2, "they run in one process here"
        assert {each.build.version for each in answer.processes} == {__version__}
        assert answer.omitted_process_count == 0


async def test_status_lists_workers(database_urls: DatabaseUrls, redis_url: str) -> None:
    async with (
        running_server(database_urls, redis_url, rules=RULES) as one,
        running_server(database_urls, redis_url, Role.WORKER, RULES),
    ):
        answer = await told(one, lambda found: any(guards_pushes(each) for each in found.processes))
        assert sorted(each.role for each in answer.processes) == ["rpc", "worker"]
        worker = next(each for each in answer.processes if each.role == "worker")
        assert guards_pushes(worker)
        assert not worker.HasField("limits")


async def test_status_of_a_process_that_ended_is_gone(database_urls: DatabaseUrls, redis_url: str) -> None:
    async with running_server(database_urls, redis_url, rules=RULES) as one:
        async with running_server(database_urls, redis_url, rules=RULES):
            await told(one, lists(2))
        assert len((await one.backend(STATUS)).processes) == 1, "it took back what it wrote"


async def test_status_of_all_processes_without_redis_comes_from_postgres(
    stores: EmbeddedStores, pair: tuple[Server, Server]
) -> None:
    one, two = pair
    await told(one, lists(2))
    stores.kill_redis()
    try:
        for server in pair:
            answer = await told(
                server,
                lambda found: (
                    len(found.processes) == 2 and all(redis_is_open(each.breakers) for each in found.processes)
                ),
            )
            breaker = next(each for each in answer.breakers if each.name == "redis")
            assert breaker.HasField("opened_time")
            assert breaker.failures >= 1
        assert len(await rows(one)) == 2
    finally:
        stores.start_redis()
    await told(one, lambda found: not any(redis_is_open(each.breakers) for each in found.processes))

    async def no_row() -> bool:
        return not await rows(one)

    await wait_until(no_row)
    assert len((await two.backend(STATUS)).processes) == 2


def redis_is_open(breakers: Any) -> bool:
    return any(one.name == "redis" and one.state != pb.BREAKER_STATE_CLOSED for one in breakers)


async def rows(server: Server) -> list[str]:
    conn = await asyncpg.connect(server.urls.admin_url)
    try:
        return [row["process"] for row in await conn.fetch("SELECT process FROM process_status")]
    finally:
        await conn.close()


async def test_status_without_postgres_lacks_what_it_knows(stores: EmbeddedStores, pair: tuple[Server, Server]) -> None:
    one, _ = pair
    await told(one, lists(2))
    stores.kill_postgres()
    try:
        answer = await told(one, lambda found: not (found.HasField("migrations") or found.slos))
        assert not answer.HasField("push_queue")
        assert not answer.pool.server_connections
        assert len(answer.processes) == 2
        assert answer.rpcs
    finally:
        stores.start_postgres()
    await told(one, lambda found: found.HasField("migrations") and found.HasField("push_queue"))


async def test_status_is_for_operators_and_services_that_may_call_it(
    database_urls: DatabaseUrls, redis_url: str
) -> None:
    tokens = f"{entry('may', 't1', 'GetStatus')},{entry('other', 't2', 'GetHint')},{entry('backend', BACKEND)}"
    async with running_server(database_urls, redis_url, SERVICE_TOKENS=tokens) as server:
        for token in ("t1", OPERATOR):
            assert (await server.bearer(token)(STATUS)).process
        assert (await server.bearer("t2").refusal(STATUS)).told == DENIED
        assert (await server.user("ann").refusal(STATUS)).told == DENIED
        assert (await server.bearer("t1").refusal(pb.GetStatusRequest(app_id="no-such"))).told == DENIED


async def test_status_hides_what_guards_other_apps(database_urls: DatabaseUrls, redis_url: str, tmp_path: Path) -> None:
    apps = tmp_path / "apps.toml"
    apps.write_text(
        '[apps.other]\njwt_secrets = "k2=fedcba9876543210fedcba9876543210"\njwt_issuer = "other"\n'
        'webhook_url = "https://hooks.example.org/of-other"\n'
    )
    tokens = f"{entry('narrow', 't1', apps='default')},{entry('backend', BACKEND)}"
    settings = {"SERVICE_TOKENS": tokens, "APPS_FILE": str(apps)}
    async with running_server(database_urls, redis_url, Role.ALL, RULES, **settings) as server:
        all_of_them = {one.name for one in (await server.backend(STATUS)).breakers}
        assert all_of_them == {"postgres", "redis", "push:default", "push:other", "webhook:hooks.example.org:https"}
        narrow = await server.bearer("t1")(STATUS)
        for breakers in (narrow.breakers, narrow.processes[0].breakers):
            assert {one.name for one in breakers} == {"postgres", "redis", "push:default"}


async def test_status_holds_no_secret(database_urls: DatabaseUrls, redis_url: str, tmp_path: Path) -> None:
    apps = tmp_path / "apps.toml"
    apps.write_text(
        '[apps.other]\njwt_secrets = "k2=fedcba9876543210fedcba9876543210"\njwt_issuer = "other"\n'
        'webhook_url = "https://hooks.example.org/path-secret"\nwebhook_token = "hook-token-secret"\n'
    )
    async with running_server(database_urls, redis_url, Role.ALL, RULES, APPS_FILE=str(apps)) as server:
        await server.register("ann", "phone", "registration-secret")
        await hint(server, 1)
        text = MessageToJson(await server.operator(STATUS))
        records = [text, *await asyncio.to_thread(stored_records, redis_url)]
        assert len(records) == 2
    secrets = [SECRET, SESSION_KEYS, BACKEND, OPERATOR, database_urls.app_url, redis_url, "registration-secret", "ann"]
    secrets += ["path-secret", "hook-token-secret", "fedcba9876543210", "postgres://", "postgresql://", "redis://"]
    for secret in [*secrets, *passwords(database_urls.app_url)]:
        assert not [record for record in records if secret in record], secret


def passwords(url: str) -> list[str]:
    login = url.partition("://")[2].partition("@")[0]
    return [password] if (password := login.partition(":")[2]) else []


def stored_records(redis_url: str) -> list[str]:
    with redis.Redis.from_url(redis_url) as client:
        return [bytes(client.get(key) or b"").decode() for key in client.keys("*:process:*")]


async def test_status_tells_the_objectives(server: Server) -> None:
    await server.register("ann", "phone", "a-token")
    await hint(server, 3)
    answer = await told(server, lambda one: any(each.events for each in one.slos))
    assert [one.name for one in answer.slos] == [objective.value for objective in Objective]
    assert {one.error_budget_remaining for one in answer.slos} == {1.0}


async def test_status_names_devices_and_users_nowhere(server: Server) -> None:
    await server.backend(
        directory_service_pb2.RegisterDeviceRequest(
            user_id="a-user-of-ours", device_id="a-device-of-ours", platform=directory_service_pb2.PLATFORM_IOS
        )
    )
    assert "of-ours" not in MessageToJson(await server.operator(STATUS))
