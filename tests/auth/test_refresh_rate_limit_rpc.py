"""Limits on RefreshSession: a forged refresh token blocks only forged ones, a genuine one only its session."""

from __future__ import annotations

from typing import Any

import pytest

from syncbeat.v1 import auth_service_pb2 as pb
from syncbeat_server.auth.sessions.refresh_token_codec import RefreshClaim, RefreshKeys
from syncbeat_server.ops.settings.server import Role
from tests.support.databases import DatabaseUrls
from tests.support.process_rules import PATIENT
from tests.support.rpc_server import SECRET, Caller, Server, running_server

pytestmark = pytest.mark.rpc

INVALID = ("UNAUTHENTICATED", "TOKEN_INVALID")
LIMITED = ("RESOURCE_EXHAUSTED", "RATE_LIMITED")
REVOKED = ("UNAUTHENTICATED", "TOKEN_REVOKED")
CLAIM = RefreshClaim("default", "0197c1f0-6f6c-7d3e-9d6b-0f3f3f6f9a10", 7)
GENUINE = RefreshKeys({"k1": SECRET.encode()}).encode(CLAIM)
FORGED = {
    "no parts": "sbr_" + "A" * 80,
    "no prefix": "x",
    "a flipped bit": GENUINE[:20] + ("A" if GENUINE[20] != "A" else "B") + GENUINE[21:],
    "cut short": GENUINE[:-8],
    "another secret": RefreshKeys({"k1": b"t" * 32}).encode(CLAIM),
    "an unknown kid": RefreshKeys({"k2": SECRET.encode()}).encode(CLAIM),
    "an app that is not there": RefreshKeys({"k1": SECRET.encode()}).encode(CLAIM._replace(app_id="gone")),
    "as long as may be": "sbr_" + "A" * 2_044,
}


def through(server: Server, *forwarded: str) -> Caller:
    """Somebody without a token, for whom proxies speak."""
    return Caller(server.channel, tuple(("x-forwarded-for", line) for line in forwarded))


async def refused(caller: Caller, token: str) -> tuple[str, str]:
    return (await caller.refusal(pb.RefreshSessionRequest(refresh_token=token))).told


async def create(server: Server, user_id: str = "ann") -> Any:
    return await server.backend(pb.CreateSessionRequest(user_id=user_id))


async def refreshed(server: Server, tokens: Any) -> Any:
    return await through(server)(pb.RefreshSessionRequest(refresh_token=tokens.refresh_token))


@pytest.mark.parametrize("kind", FORGED)
async def test_refresh_rate_limit_of_forged_tokens_spares_genuine_ones_at_the_address(
    database_urls: DatabaseUrls, redis_url: str, kind: str
) -> None:
    async with running_server(database_urls, redis_url, WRONG_REFRESHES_PER_MINUTE="5") as server:
        tokens = await create(server)
        answers = [await refused(through(server), FORGED[kind]) for _ in range(8)]
        assert answers == [INVALID] * 5 + [LIMITED] * 3
        assert (await refreshed(server, tokens)).session_id == tokens.session_id


async def test_refresh_rate_limit_of_revoked_tokens_spares_other_sessions_at_the_address(
    database_urls: DatabaseUrls, redis_url: str
) -> None:
    variables = {"REFRESHES_PER_MINUTE": "5", "WRONG_REFRESHES_PER_MINUTE": "5"}
    async with running_server(database_urls, redis_url, Role.RPC, PATIENT, **variables) as server:
        mine, others = await create(server), await create(server, "bob")
        await server.backend(pb.RevokeSessionRequest(user_id="ann", session_id=mine.session_id))
        answers = [await refused(through(server), mine.refresh_token) for _ in range(8)]
        assert answers == [REVOKED] * 5 + [LIMITED] * 3
        assert await refused(through(server), FORGED["no parts"]) == INVALID
        assert (await refreshed(server, others)).session_id == others.session_id


async def test_refresh_rate_limit_of_replays_is_per_session_not_per_address(
    database_urls: DatabaseUrls, redis_url: str
) -> None:
    async with running_server(
        database_urls, redis_url, REFRESHES_PER_MINUTE="5", TRUSTED_PROXIES="127.0.0.0/8"
    ) as server:
        first = await create(server)
        request = pb.RefreshSessionRequest(refresh_token=first.refresh_token)
        for number in range(5):
            await through(server, f"192.0.2.{number}")(request)
        refusal = await through(server, "192.0.2.77").refusal(request)
        assert (refusal.told, refusal.message) == (LIMITED, "this session is refreshed too often")
        assert refusal.pushback == "-1"  # the next one is due in 12 s
        assert (await refreshed(server, await create(server, "bob"))).session_id


async def test_refresh_rate_limit_uses_the_forwarded_address_of_a_trusted_proxy(
    database_urls: DatabaseUrls, redis_url: str
) -> None:
    async with running_server(
        database_urls, redis_url, WRONG_REFRESHES_PER_MINUTE="2", TRUSTED_PROXIES="127.0.0.1, 10.0.0.0/8"
    ) as server:
        bad = FORGED["another secret"]
        assert [await refused(through(server, "192.0.2.1"), bad) for _ in range(3)] == [INVALID, INVALID, LIMITED]
        # What stands left of the first address that no proxy of ours has is whatever the caller likes.
        for forwarded in (["198.51.100.9, 192.0.2.1"], ["x, 192.0.2.1, 10.0.0.7"], ["198.51.100.9", "192.0.2.1"]):
            assert await refused(through(server, *forwarded), bad) == LIMITED
        assert await refused(through(server, "192.0.2.2"), bad) == INVALID
        # A /64 of IPv6 is one subscriber (RFC 6177).
        answers = [await refused(through(server, f"2001:db8::{number}"), bad) for number in range(3)]
        assert answers == [INVALID, INVALID, LIMITED]
        assert await refused(through(server, "2001:db8:0:1::1"), bad) == INVALID


async def test_refresh_rate_limit_ignores_forwarded_addresses_of_untrusted_peers(
    database_urls: DatabaseUrls, redis_url: str
) -> None:
    for trusted in ("", "10.0.0.0/8"):
        variables = {"WRONG_REFRESHES_PER_MINUTE": "2", "TRUSTED_PROXIES": trusted}
        async with running_server(database_urls, redis_url, Role.RPC, PATIENT, **variables) as server:
            answers = [await refused(through(server, f"192.0.2.{number}"), FORGED["no parts"]) for number in range(3)]
            assert answers == [INVALID, INVALID, LIMITED]
