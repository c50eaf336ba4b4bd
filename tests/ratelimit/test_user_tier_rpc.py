"""Tests SetUserTier and GetUserTier over a real channel, and how a change reaches other processes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from syncbeat.v1 import directory_service_pb2 as pb
from syncbeat.v1 import sync_service_pb2
from syncbeat_server.app import Stores
from syncbeat_server.app.change_notifier import ClusterNotifier, listen_for_changes
from syncbeat_server.app.process import open_process, run_in_background
from syncbeat_server.app.ratelimit.tiers import TierPolicies
from syncbeat_server.app.rpc import rpc_caches
from syncbeat_server.audit.record import record_grant
from syncbeat_server.auth.service import Authenticator
from syncbeat_server.auth.tokens.bearer import parse_bearer
from syncbeat_server.auth.tokens.verify import mint
from syncbeat_server.ops.settings.load import load_settings
from syncbeat_server.ops.settings.server import Settings
from syncbeat_server.ops.shutdown_budget import ShutdownBudget
from syncbeat_server.ratelimit.policy.tiers import resolve_tier
from syncbeat_server.ratelimit.user_tiers import UserTiers
from tests.support.databases import DatabaseUrls
from tests.support.fake_clock import wait_until
from tests.support.process_rules import PATIENT_WITH_OTHERS
from tests.support.rpc_server import KEY, KID, METHODS, SECRET, Server, hear_each_other, running_server

pytestmark = pytest.mark.rpc

TIERS = """
[apps.default.tiers.free.principal.hint]
per_second = 0
[apps.default.tiers.pro.principal.hint]
per_second = 1000
"""


@pytest.fixture
def apps_file(tmp_path: Path) -> str:
    path = tmp_path / "apps.toml"
    path.write_text(TIERS)
    return str(path)


@pytest.fixture
async def tiered(database_urls: DatabaseUrls, redis_url: str, apps_file: str) -> AsyncIterator[Server]:
    """A server whose default app has tiers."""
    async with running_server(
        database_urls, redis_url, APPS_FILE=apps_file, DEFAULT_TIER="free", TIER_CLAIM="plan"
    ) as running:
        yield running


def token_of(claims: dict[str, str | int]) -> str:
    return mint(KEY, "ann", datetime.now(UTC), timedelta(hours=1), claims=claims)


async def tier_of(server: Server, user_id: str = "ann") -> tuple[str, str, str]:
    answer = (await server.backend(pb.GetUserTierRequest(user_id=user_id))).user_tier
    return answer.tier, pb.TierSource.Name(answer.source), answer.granted_tier


async def test_user_tier_is_set_and_cleared(tiered: Server) -> None:
    assert await tier_of(tiered) == ("free", "TIER_SOURCE_CLAIM", "")
    for _ in range(2):
        answer = await tiered.backend(pb.SetUserTierRequest(user_id="ann", tier="pro"))
        assert answer.user_tier == pb.UserTier(tier="pro", source=pb.TIER_SOURCE_SET, granted_tier="pro")
    assert await tier_of(tiered) == ("pro", "TIER_SOURCE_SET", "pro")
    assert await tier_of(tiered, "bob") == ("free", "TIER_SOURCE_CLAIM", "")
    await tiered.backend(pb.SetUserTierRequest(user_id="ann"))
    assert await tier_of(tiered) == ("free", "TIER_SOURCE_CLAIM", "")


async def test_user_tier_that_the_app_lacks_is_refused_with_a_reason(tiered: Server, server: Server) -> None:
    for request, one in (
        (pb.SetUserTierRequest(user_id="ann", tier="gold"), tiered),
        (pb.SetUserTierRequest(user_id="ann", tier="pro"), server),
    ):
        refusal = await one.backend.refusal(request)
        assert refusal.told == ("INVALID_ARGUMENT", "INVALID_FIELD")
        assert (refusal.fields, refusal.field_reasons) == (("tier",), ("UNKNOWN_VALUE",))
    assert await tier_of(server) == ("", "TIER_SOURCE_DEFAULT", "")


async def test_user_tier_goes_with_the_user(tiered: Server) -> None:
    await tiered.backend(pb.SetUserTierRequest(user_id="ann", tier="pro"))
    await tiered.backend(pb.DeleteUserRequest(user_id="ann"))
    assert await tier_of(tiered) == ("free", "TIER_SOURCE_CLAIM", "")


def poll() -> sync_service_pb2.GetHintRequest:
    return sync_service_pb2.GetHintRequest(device_id="phone")


async def is_admitted(server: Server, token: str) -> bool:
    """Tell if a poll is let through; False if a limit refuses it."""
    refusal = await server.bearer(token).outcome(METHODS["GetHintRequest"], poll().SerializeToString())
    assert refusal is None or refusal.told == ("RESOURCE_EXHAUSTED", "RATE_LIMITED")
    return refusal is None


async def test_user_tier_decides_calls_of_every_server_at_once(
    tiered: Server, database_urls: DatabaseUrls, redis_url: str, apps_file: str
) -> None:
    await tiered.register("ann", "phone")
    plain, claiming = token_of({}), token_of({"plan": "pro"})
    async with running_server(
        database_urls, redis_url, APPS_FILE=apps_file, DEFAULT_TIER="free", TIER_CLAIM="plan"
    ) as other:

        async def hold(*wanted: bool) -> None:
            async def do() -> bool:
                calls = [await is_admitted(one, token) for one in (tiered, other) for token in (plain, claiming)]
                return calls == [*wanted, *wanted]

            await wait_until(do)

        await hear_each_other(tiered, other)
        await hold(False, True)  # the default refuses all
        await other.backend(pb.SetUserTierRequest(user_id="ann", tier="pro"))
        await hold(True, True)
        await tiered.backend(pb.SetUserTierRequest(user_id="ann", tier="free"))
        await hold(False, False)
        await tiered.backend(pb.SetUserTierRequest(user_id="ann"))
        await hold(False, True)


@dataclass(frozen=True)
class Process:
    """Holds the parts by which a process judges a user's call, and grants tiers."""

    authenticator: Authenticator
    policies: TierPolicies
    tiers: UserTiers

    async def tier_of(self, token: str) -> str:
        bearer = parse_bearer([f"Bearer {token}"])
        principal = self.authenticator.cached(bearer) or await self.authenticator.authenticate(bearer)
        assert principal.token is not None
        tier = resolve_tier(self.policies.of(principal.app_id), principal.tier, principal.token.tier)
        return "" if tier is None else tier.name


@asynccontextmanager
async def process(settings: Settings, urls: DatabaseUrls, redis_url: str) -> AsyncIterator[Process]:
    """Wire what a serving process has of tiers and callers."""
    stores = Stores(urls.app_url, redis_url)
    async with (
        open_process(settings, stores, ShutdownBudget(1.0), PATIENT_WITH_OTHERS) as opened,
        rpc_caches(opened) as caches,
        run_in_background([listen_for_changes(opened, None, caches)]),
    ):
        policies = TierPolicies(opened.apps)
        notifier = ClusterNotifier(opened, None, caches)
        tiers = UserTiers(opened.database, policies.of, notifier.caller_changed, record_grant)
        yield Process(caches.authenticator, policies, tiers)


async def test_user_tier_change_reaches_other_processes_at_once(
    database_urls: DatabaseUrls, redis_url: str, apps_file: str
) -> None:
    given = {
        "JWT_SECRETS": f"{KID}={SECRET}",
        "JWT_SUBJECTS": "any",
        "DATABASE_POOL_SIZE": "2",
        "APPS_FILE": apps_file,
        "DEFAULT_TIER": "free",
        "TIER_CLAIM": "plan",
    }
    settings = load_settings({f"SYNCBEAT_{name}": text for name, text in given.items()}, env_file=None)
    plain, claiming, lying = token_of({}), token_of({"plan": "pro"}), token_of({"plan": "gold"})
    async with (
        process(settings, database_urls, redis_url) as one,
        process(settings, database_urls, redis_url) as two,
    ):

        async def told(wanted: tuple[str, str, str]) -> None:
            async def holds() -> bool:
                tiers = [await any_one.tier_of(token) for any_one in (one, two) for token in (plain, claiming, lying)]
                return tiers == [*wanted, *wanted]

            await wait_until(holds)  # for less time than a status is believed without an invalidation

        await told(("free", "pro", "free"))
        await one.tiers.set("default", "ann", "pro")
        await told(("pro", "pro", "pro"))
        await two.tiers.set("default", "ann", "free")
        await told(("free", "free", "free"))
        await one.tiers.set("default", "ann", "")
        await told(("free", "pro", "free"))
