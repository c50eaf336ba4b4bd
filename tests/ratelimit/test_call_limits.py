"""Calls over the wire against the limits of users, devices, scopes, services and apps, and the errors they get."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import grpc
import pytest
from google.protobuf.message import Message

from syncbeat.v1 import core_pb2, directory_service_pb2, sync_service_pb2
from syncbeat_server.ops.settings.server import Role
from syncbeat_server.ratelimit.lease import LeaseRule
from syncbeat_server.ratelimit.model import LimitSubject, MethodClass, Rate
from tests.support.databases import DatabaseUrls
from tests.support.fake_clock import wait_until
from tests.support.process_rules import PATIENT
from tests.support.rpc_server import METHODS, Caller, Refusal, Server, refusal_of, running_server

pytestmark = pytest.mark.rpc

SLOW = 1e-3
LIMITED = ("RESOURCE_EXHAUSTED", "RATE_LIMITED")
APP, PRINCIPAL, DEVICE, SCOPE = LimitSubject.APP, LimitSubject.PRINCIPAL, LimitSubject.DEVICE, LimitSubject.SCOPE

Limit = tuple[LimitSubject, MethodClass, Rate]
Serving = AbstractAsyncContextManager[Server]


def serve(urls: DatabaseUrls, redis_url: str, user: list[Limit], service: list[Limit] | None = None) -> Serving:
    """Serve with these limits of users, and of services."""
    tiers = {"free": user} | ({} if service is None else {"service": service})
    tables = "".join(
        f"[apps.default.tiers.{name}.{subject}.{kind}]\nper_second = {rate.per_second}\nburst = {rate.burst}\n"
        for name, limits in tiers.items()
        for subject, kind, rate in limits
    )
    return serve_tables(urls, redis_url, tables)


def written(folder: str, tables: str) -> str:
    file = Path(folder, "apps.toml")
    file.write_text(tables)
    return str(file)


@asynccontextmanager
async def serve_tables(urls: DatabaseUrls, redis_url: str, tables: str) -> AsyncIterator[Server]:
    """Serve with these tables of the apps file, and the default tier `free`."""
    rules = replace(PATIENT, limits=LeaseRule(answer_s=20.0))
    with TemporaryDirectory() as folder:
        settings = {"APPS_FILE": written(folder, tables), "DEFAULT_TIER": "free", "TIER_CLAIM": "plan"}
        async with running_server(urls, redis_url, Role.RPC, rules, **settings) as server:
            yield server


def poll(device: str = "phone") -> Message:
    return sync_service_pb2.GetHintRequest(device_id=device)


def publish(scope: str, patch: str = "1") -> Message:
    change = core_pb2.NewChange(scope=scope, key="k", merge_patch_json=patch)
    return sync_service_pb2.PublishChangesRequest(changes=[change])


async def told(caller: Caller, request: Message, count: int) -> list[bool]:
    """Make a call several times; return for each whether a limit let it through."""
    return [not is_limited(await outcome(caller, request)) for _ in range(count)]


async def outcome(caller: Caller, request: Message) -> Refusal | None:
    return await caller.outcome(METHODS[request.DESCRIPTOR.name], request.SerializeToString())


def is_limited(refusal: Refusal | None) -> bool:
    return refusal is not None and refusal.told == LIMITED


@pytest.fixture
async def hints(database_urls: DatabaseUrls, redis_url: str) -> AsyncIterator[Server]:
    """A server whose users may poll three times, and each of their devices twice; all users together six times."""
    limits = [
        (PRINCIPAL, MethodClass.HINT, Rate(SLOW, 3)),
        (DEVICE, MethodClass.HINT, Rate(SLOW, 2)),
        (APP, MethodClass.HINT, Rate(SLOW, 6)),
    ]
    async with serve(database_urls, redis_url, limits) as server:
        for user in ("ann", "bob", "carl"):
            await server.register(user, "phone")
            await server.register(user, "tablet")
        yield server


async def test_rate_limits_of_user_device_and_app_apply_together(hints: Server) -> None:
    ann, bob, carl = (hints.user(name) for name in ("ann", "bob", "carl"))
    assert await told(ann, poll(), 3) == [True, True, False]  # of the device
    assert await told(ann, poll("tablet"), 2) == [True, False]  # of the user
    assert await told(bob, poll("tablet"), 2) == [True, True]
    assert await told(carl, poll(), 2) == [True, False]  # of the app
    refusal = await outcome(carl, poll("tablet"))
    assert refusal is not None
    assert refusal.metadata["subject"] == "app"
    # Limits of polls are none of other calls.
    listed = await hints.user("ann")(directory_service_pb2.ListDevicesRequest())
    assert len(listed.devices) == 2


async def test_rate_limit_error_has_retry_pushback_and_quota_metadata(hints: Server) -> None:
    ann = hints.user("ann")
    await told(ann, poll(), 2)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await ann(poll())
    refusal = refusal_of(raised.value)
    assert refusal.told == LIMITED
    assert refusal.message == "the device's limit of hint calls is reached"
    told_metadata = {name: refusal.metadata[name] for name in ("limit", "remaining", "subject", "methodClass")}
    assert told_metadata == {"limit": "2", "remaining": "0", "subject": "device", "methodClass": "hint"}
    assert 1_900 < int(refusal.metadata["reset"]) <= 2_001
    assert refusal.pushback == "-1"  # more than a client of gRPC should wait for by itself
    assert b"google.rpc.RetryInfo" in dict(raised.value.trailing_metadata() or ())["grpc-status-details-bin"]


async def test_rate_limit_of_a_user_does_not_hold_for_services_and_operators(hints: Server) -> None:
    polled = sync_service_pb2.GetHintRequest(user_id="ann", device_id="phone")
    assert await told(hints.backend, polled, 5) == [True] * 5
    assert await told(hints.backend, polled, 3) == [True, False, False], "the app's own limit does"


async def test_rate_limit_of_services_is_their_tier(database_urls: DatabaseUrls, redis_url: str) -> None:
    user, service = [(PRINCIPAL, MethodClass.PUBLISH, Rate(SLOW, 1))], [(PRINCIPAL, MethodClass.PUBLISH, Rate(SLOW, 2))]
    async with serve(database_urls, redis_url, user, service) as server:
        await server.add("s", "ann")
        assert await told(server.backend, publish("s"), 3) == [True, True, False]
        assert await told(server.user("ann"), publish("s"), 2) == [True, False]


async def test_rate_limit_of_a_scope_is_not_used_up_by_other_users(database_urls: DatabaseUrls, redis_url: str) -> None:
    async with serve(database_urls, redis_url, [(SCOPE, MethodClass.PUBLISH, Rate(SLOW, 2))]) as server:
        await server.add("s", "ann")
        assert await told(server.user("mallory"), publish("s"), 3) == [True, True, False]
        assert await told(server.user("ann"), publish("s"), 3) == [True, True, False]
        assert await told(server.user("ann"), publish("other"), 1) == [True]


async def test_rate_limit_of_octets_counts_requests_of_every_class(database_urls: DatabaseUrls, redis_url: str) -> None:
    async with serve(database_urls, redis_url, [(PRINCIPAL, MethodClass.BYTES, Rate(SLOW, 1_000))]) as server:
        await server.register("ann", "phone")
        await server.add("s", "ann")
        ann = server.user("ann")
        large = publish("s", '"' + "x" * 600 + '"')
        assert await told(ann, large, 2) == [True, False]
        assert await told(ann, poll(), 3) == [True] * 3
        refusal = await outcome(ann, large)
        assert refusal is not None
        assert refusal.message == "the principal's limit of octets is reached"
        assert 0 < int(refusal.metadata["remaining"]) < 400


@pytest.mark.parametrize("octets", [900, 960, 1_100, 5_000])
async def test_rate_limit_of_octets_admits_a_request_larger_than_its_burst(
    database_urls: DatabaseUrls, redis_url: str, octets: int
) -> None:
    limits = [(subject, MethodClass.BYTES, Rate(100.0, 1_000)) for subject in (PRINCIPAL, SCOPE)]
    user = [(PRINCIPAL, MethodClass.HINT, Rate(SLOW, 5))]
    large = publish("s", '"' + "x" * octets + '"')
    async with (
        serve(database_urls, redis_url, user, limits) as one,
        serve(database_urls, redis_url, user, limits) as other,
    ):
        await one.add("s", "ann")

        async def is_admitted() -> bool:
            return await told(one.backend, large, 1) == [True]

        await wait_until(is_admitted, what="the bucket is empty again")
        assert await told(other.backend, large, 1) == [False]


async def test_monthly_quota_refuses_a_request_larger_than_it_at_once(
    database_urls: DatabaseUrls, redis_url: str
) -> None:
    tables = "[apps.default.tiers.free.principal.bytes]\nmonthly_quota = 500\n"
    async with serve_tables(database_urls, redis_url, tables) as server:
        await server.add("s", "ann")
        refusal = await outcome(server.user("ann"), publish("s", '"' + "x" * 600 + '"'))
        assert refusal is not None
        assert is_limited(refusal)
        assert (refusal.metadata["limit"], refusal.metadata["remaining"]) == ("500", "500")
        assert await told(server.user("ann"), publish("s"), 1) == [True]


async def test_rate_limit_counts_opened_streams_and_invalid_requests(
    database_urls: DatabaseUrls, redis_url: str
) -> None:
    limits = [(PRINCIPAL, MethodClass.STREAM, Rate(SLOW, 1)), (PRINCIPAL, MethodClass.HINT, Rate(SLOW, 2))]
    async with serve(database_urls, redis_url, limits) as server:
        await server.register("ann", "phone")
        ann = server.user("ann")
        await ann.watch(device_id="phone").opened()
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await ann.watch(device_id="phone").opened()
        assert refusal_of(raised.value).told == LIMITED
        refusals = [await outcome(ann, poll("")) for _ in range(3)]
        assert refusals[0] is not None
        assert refusals[0].reason == "INVALID_FIELD"
        assert is_limited(refusals[2])


async def test_rate_limit_of_zero_is_closed(database_urls: DatabaseUrls, redis_url: str) -> None:
    async with serve(database_urls, redis_url, [(PRINCIPAL, MethodClass.HINT, Rate(0.0, 5))]) as server:
        await server.register("ann", "phone")
        assert await told(server.user("ann"), poll(), 2) == [False, False]


async def test_rate_limit_is_shared_by_servers(database_urls: DatabaseUrls, redis_url: str) -> None:
    limits = [(PRINCIPAL, MethodClass.HINT, Rate(SLOW, 5))]
    async with serve(database_urls, redis_url, limits) as one, serve(database_urls, redis_url, limits) as other:
        await one.register("ann", "phone")
        answers = [*await told(one.user("ann"), poll(), 3), *await told(other.user("ann"), poll(), 3)]
        assert answers == [True] * 5 + [False]


QUOTAS = """
[apps.default.tiers.free.principal.hint]
monthly_quota = 2
[apps.default.tiers.pro.principal.hint]
per_second = 0.001
burst = 4
"""


async def test_monthly_quota_is_told_with_the_end_of_the_month(database_urls: DatabaseUrls, redis_url: str) -> None:
    async with serve_tables(database_urls, redis_url, QUOTAS) as server:
        await server.register("ann", "phone")
        ann = server.user("ann")
        assert await told(ann, poll(), 3) == [True, True, False]
        refusal = await outcome(ann, poll())
        assert refusal is not None
        assert refusal.message == "the principal's monthly quota of hint is used up"
        assert (refusal.metadata["limit"], refusal.metadata["remaining"]) == ("2", "0")
        assert 0 < int(refusal.metadata["reset"]) <= 31 * 86_400


async def test_rate_limit_is_that_of_the_tier_that_was_set(database_urls: DatabaseUrls, redis_url: str) -> None:
    async with serve_tables(database_urls, redis_url, QUOTAS) as server:
        await server.register("ann", "phone")
        ann = server.user("ann")
        assert await told(ann, poll(), 3) == [True, True, False]
        await server.backend(directory_service_pb2.SetUserTierRequest(user_id="ann", tier="pro"))
        assert await told(ann, poll(), 5) == [True] * 4 + [False]


async def test_rate_limit_of_a_better_tier_is_not_used_up_by_the_former_one(
    database_urls: DatabaseUrls, redis_url: str
) -> None:
    tables = """
[apps.default.tiers.free.principal]
hint = { per_second = 0.001, burst = 5 }
[apps.default.tiers.pro.principal]
hint = { per_second = 0.1, burst = 10 }
"""
    async with serve_tables(database_urls, redis_url, tables) as server:
        await server.register("ann", "phone")
        ann = server.user("ann")
        assert await told(ann, poll(), 6) == [True] * 5 + [False]
        await server.backend(directory_service_pb2.SetUserTierRequest(user_id="ann", tier="pro"))
        assert await told(ann, poll(), 10) == [True] * 10
        # Nor does it give the former one anything back.
        await server.backend(directory_service_pb2.SetUserTierRequest(user_id="ann"))
        assert await told(ann, poll(), 1) == [False]
