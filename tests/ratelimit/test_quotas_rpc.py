"""Tests monthly quotas over a real channel: told to who is refused, kept over restarts, and needing no Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from google.protobuf.message import Message

from syncbeat.v1 import core_pb2, sync_service_pb2
from syncbeat_server.ratelimit.policy.months import month_at
from tests.support.databases import DatabaseUrls
from tests.support.rpc_server import METHODS, Caller, Refusal, Server, running_server

pytestmark = pytest.mark.rpc

TIERS = """
[apps.default.tiers.free.principal]
hint = { monthly_quota = 5 }
bytes = { monthly_quota = 2000 }
[apps.default.tiers.free.app.publish]
monthly_quota = 3
[apps.default.tiers.service.principal.publish]
monthly_quota = 2
"""
NO_REDIS = "unix:///nonexistent/redis.sock"
ZONE = "Europe/Vienna"


@asynccontextmanager
async def serving(urls: DatabaseUrls, redis_url: str, folder: Path) -> AsyncIterator[Server]:
    (folder / "apps.toml").write_text(TIERS)
    async with running_server(
        urls, redis_url, APPS_FILE=str(folder / "apps.toml"), DEFAULT_TIER="free", QUOTA_TIME_ZONE=ZONE
    ) as server:
        yield server


def publish(text: str = "1") -> Message:
    change = core_pb2.NewChange(scope="s", key="k", merge_patch_json=text)
    return sync_service_pb2.PublishChangesRequest(changes=[change])


async def told(caller: Caller, request: Message, count: int) -> list[Refusal | None]:
    method, data = METHODS[request.DESCRIPTOR.name], request.SerializeToString()
    return [await caller.outcome(method, data) for _ in range(count)]


POLL = sync_service_pb2.GetHintRequest(device_id="phone")


@pytest.mark.parametrize("with_redis", [True, False])
async def test_quota_is_kept_over_a_restart_and_its_refusal_tells_the_reset(
    database_urls: DatabaseUrls, redis_url: str, tmp_path: Path, with_redis: bool
) -> None:
    redis = redis_url if with_redis else NO_REDIS
    async with serving(database_urls, redis, tmp_path) as server:
        await server.register("ann", "phone")
        assert await told(server.user("ann"), POLL, 3) == [None] * 3
    async with serving(database_urls, redis, tmp_path) as server:
        *admitted, refusal = await told(server.user("ann"), POLL, 3)
        assert admitted == [None, None]
        assert refusal is not None
        assert refusal.told == ("RESOURCE_EXHAUSTED", "RATE_LIMITED")
        assert refusal.message == "the principal's monthly quota of hint is used up"
        assert (refusal.metadata["limit"], refusal.metadata["remaining"]) == ("5", "0")
        now = datetime.now(UTC)
        left_s = month_at(now, ZONE).ends_at - now.timestamp()
        assert abs(int(refusal.metadata["reset"]) - left_s) < 60
        (bobs,) = await told(server.user("bob"), POLL, 1)
        assert bobs is not None
        assert bobs.reason == "ACCESS_DENIED", "no device of his, which no quota of ann's is told before"


async def test_quotas_of_app_service_and_octets_apply_together(
    database_urls: DatabaseUrls, redis_url: str, tmp_path: Path
) -> None:
    async with serving(database_urls, redis_url, tmp_path) as server:
        await server.add("s", "ann", "bob")
        ann, bob = server.user("ann"), server.user("bob")
        assert await told(server.backend, publish(), 2) == [None, None]
        (refused,) = await told(server.backend, publish(), 1)
        assert refused is not None
        assert refused.metadata["subject"] == "principal"
        (octets,) = await told(ann, publish(f'"{"x" * 2_000}"'), 1)
        assert octets is not None
        assert octets.message == "the principal's monthly quota of bytes is used up"
        assert await told(ann, publish(), 1) == [None]
        (of_app,) = await told(bob, publish(), 1)
        assert of_app is not None
        assert (of_app.metadata["subject"], of_app.metadata["limit"]) == ("app", "3")
