"""Sessions, revocation and the caches of checked tokens over the wire; two servers on the same stores."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import jwt
import pytest
from google.protobuf.message import Message

from syncbeat.v1 import auth_service_pb2 as pb
from syncbeat.v1 import directory_service_pb2
from syncbeat_server.app.process_rules import ProcessRules
from syncbeat_server.auth.accounts.account_status_cache import CACHE_S
from syncbeat_server.ops.settings.server import Role
from syncbeat_server.sync.streams.stream_context import StreamRule
from tests.support.databases import DatabaseUrls, run_sql
from tests.support.fake_clock import wait_until
from tests.support.process_rules import PATIENT_WITH_OTHERS
from tests.support.rpc_server import METHODS, Caller, Server, entry, hear_each_other, refusal_of, running_server

pytestmark = pytest.mark.rpc

REVOKED = ("UNAUTHENTICATED", "TOKEN_REVOKED")
DENIED = ("PERMISSION_DENIED", "ACCESS_DENIED")
# By a wake-up, and not because what is kept ends: that is 45 s at the least. A busy machine needs its time too.
TOLD_WITHIN_S = ENDED_WITHIN_S = 20.0


# That somebody is shut out is kept as long as that somebody is not: else it ends within what is waited for.
RULES = replace(PATIENT_WITH_OTHERS, negative_cache_s=CACHE_S)


@pytest.fixture
def rules() -> ProcessRules:
    return RULES


@pytest.fixture
async def pair(database_urls: DatabaseUrls, redis_url: str) -> AsyncIterator[tuple[Server, Server]]:
    """Two servers that know each other through the stores alone."""
    async with (
        running_server(database_urls, redis_url, rules=RULES) as one,
        running_server(database_urls, redis_url, rules=RULES) as two,
    ):
        yield one, two


async def create(server: Server, user_id: str = "ann", **fields: Any) -> Any:
    return await server.backend(pb.CreateSessionRequest(user_id=user_id, **fields))


def refresh(tokens: Any) -> pb.RefreshSessionRequest:
    return pb.RefreshSessionRequest(refresh_token=tokens.refresh_token)


def anybody(server: Server) -> Caller:
    return Caller(server.channel, ())


WHO_AM_I = directory_service_pb2.ListDevicesRequest()


async def told(caller: Caller, request: Message) -> tuple[str, str] | None:
    """Return how a call is refused; None when it is answered."""
    refusal = await caller.outcome(METHODS[request.DESCRIPTOR.name], request.SerializeToString())
    return None if refusal is None else refusal.told


async def outcome(server: Server, tokens: Any) -> tuple[str, str] | None:
    """Return how a call with the access token is refused; None when it is let in."""
    return await told(server.bearer(tokens.access_token), WHO_AM_I)


async def refused_soon(server: Server, tokens: Any) -> float:
    """Seconds until the access token is refused as revoked."""
    start = time.monotonic()

    async def refused() -> bool:
        return await outcome(server, tokens) == REVOKED

    await wait_until(refused, timeout_s=TOLD_WITHIN_S)
    return time.monotonic() - start


async def test_session_is_valid_and_revoked_on_every_server(pair: tuple[Server, Server]) -> None:
    one, two = pair
    first = await create(one, claims={"plan": "pro"})
    assert await outcome(two, first) is None
    second = await anybody(two)(refresh(first))
    assert (second.session_id, await outcome(one, second)) == (first.session_id, None)
    listed = (await two.bearer(second.access_token)(pb.ListSessionsRequest())).sessions
    assert [session.session_id for session in listed] == [first.session_id]
    await one.bearer(second.access_token)(pb.RevokeSessionRequest(session_id=first.session_id))
    assert await outcome(one, second) == REVOKED
    assert await refused_soon(two, second) < TOLD_WITHIN_S
    assert (await anybody(two).refusal(refresh(second))).told == REVOKED
    assert not (await one.backend(pb.ListSessionsRequest(user_id="ann"))).sessions


async def test_access_token_lifetime_follows_the_setting(database_urls: DatabaseUrls, redis_url: str) -> None:
    async with running_server(database_urls, redis_url, rules=RULES, ACCESS_TOKEN_S="600") as server:
        made = await create(server)
        for tokens in (made, await anybody(server)(refresh(made))):
            claims = jwt.decode(tokens.access_token, options={"verify_signature": False})
            assert 539 <= claims["exp"] - claims["iat"] <= 600, "up to a tenth shorter, so that they spread"
            assert tokens.access_expire_time.seconds == claims["exp"]


async def test_refresh_token_reuse_shuts_out_thief_and_owner_on_every_server(pair: tuple[Server, Server]) -> None:
    one, two = pair
    first = await create(one)
    second = await anybody(one)(refresh(first))
    third = await anybody(two)(refresh(second))
    assert await outcome(one, third) is None
    assert (await anybody(two).refusal(refresh(first))).told == REVOKED
    assert await outcome(two, third) == REVOKED
    await refused_soon(one, third)
    for tokens in (first, second, third):
        assert (await anybody(one).refusal(refresh(tokens))).told == REVOKED


async def end_of(stream: Any) -> tuple[float, tuple[str, str]]:
    """Return when a stream ended, and how."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stream.until(lambda *_: False)
    return time.monotonic(), refusal_of(caught.value).told


@pytest.mark.parametrize("way", ["RevokeSession", "RevokeUser", "DisableUser", "DeleteUser"])
async def test_revocation_ends_streams_on_every_server(pair: tuple[Server, Server], way: str) -> None:
    one, two = pair
    await one.register("ann", "phone")
    tokens, others = await create(one), await create(one, "bob")
    streams = [server.bearer(tokens.access_token).watch() for server in pair]
    kept = two.bearer(others.access_token).watch()
    for stream in (*streams, kept):
        await stream.opened()
    requests = {
        "RevokeSession": pb.RevokeSessionRequest(user_id="ann", session_id=tokens.session_id),
        "RevokeUser": pb.RevokeUserRequest(user_id="ann", reason="lost phone"),
        "DisableUser": directory_service_pb2.DisableUserRequest(user_id="ann"),
        "DeleteUser": directory_service_pb2.DeleteUserRequest(user_id="ann"),
    }
    start = time.monotonic()
    await one.backend(requests[way])
    async with asyncio.timeout(ENDED_WITHIN_S):
        ends = await asyncio.gather(*(end_of(stream) for stream in streams))
    assert [how for _, how in ends] == [REVOKED, REVOKED]
    assert max(at for at, _ in ends) - start < ENDED_WITHIN_S
    for server in pair:
        assert await outcome(server, tokens) == REVOKED
    await one.add("s", "bob")
    await one.publish("s")
    assert (await kept.next("change")).scope == "s"


async def test_revocation_of_a_user_kills_foreign_tokens_and_new_ones_live(
    database_urls: DatabaseUrls, redis_url: str
) -> None:
    leeway: Any = {"JWT_LEEWAY_S": "1"}
    async with (
        running_server(database_urls, redis_url, rules=RULES, **leeway) as one,
        running_server(database_urls, redis_url, rules=RULES, **leeway) as two,
    ):
        foreign = one.user("ann")
        await foreign(WHO_AM_I)
        answer = await two.backend(pb.RevokeUserRequest(user_id="ann"))
        assert answer.revoked_session_count == 0

        async def refused() -> bool:
            return await told(foreign, WHO_AM_I) == REVOKED

        await wait_until(refused, timeout_s=TOLD_WITHIN_S)

        async def let_in() -> bool:  # once the second of the revocation and the leeway are over
            return await told(one.user("ann"), WHO_AM_I) is None

        await wait_until(let_in, timeout_s=TOLD_WITHIN_S)


async def test_disabled_user_waits_and_deleted_user_begins_anew(pair: tuple[Server, Server]) -> None:
    one, two = pair
    tokens = await create(one)
    await one.register("ann", "phone", "a-token")
    await one.add("s", "ann")
    await one.backend(directory_service_pb2.DisableUserRequest(user_id="ann"))
    await refused_soon(two, tokens)
    assert (await one.backend.refusal(pb.CreateSessionRequest(user_id="ann"))).told == DENIED
    await one.backend(directory_service_pb2.EnableUserRequest(user_id="ann"))

    async def back() -> bool:
        return await outcome(two, tokens) is None

    await wait_until(back, timeout_s=TOLD_WITHIN_S)
    erased = await two.backend(directory_service_pb2.DeleteUserRequest(user_id="ann"))
    assert (erased.device_count, erased.membership_count, erased.session_count) == (1, 1, 1)
    await refused_soon(one, tokens)
    again = await two.backend(directory_service_pb2.DeleteUserRequest(user_id="ann"))
    assert (again.device_count, again.membership_count, again.session_count) == (0, 0, 0)
    fresh = await create(one)
    assert await outcome(one, fresh) is None
    assert not (await one.bearer(fresh.access_token)(WHO_AM_I)).devices
    assert await outcome(one, tokens) == REVOKED


async def test_token_cache_stats_are_reported_and_flush_works(pair: tuple[Server, Server]) -> None:
    one, two = pair
    await hear_each_other(*pair)
    tokens, others = await create(one), await create(one, "bob")
    await hear_each_other(*pair)
    for server in pair:
        for _ in range(4):
            assert await outcome(server, tokens) is None
        assert await outcome(server, others) is None
    stats = await one.backend(pb.GetTokenCacheStatsRequest())
    assert len(stats.processes) == 2
    assert (stats.total.size, stats.total.hits, stats.total.misses) == (4, 6, 4)
    assert stats.total.hit_rate == pytest.approx(0.6)
    forgotten = await two.backend(pb.InvalidateTokenCacheRequest(user_id="ann"))
    assert forgotten.invalidated_count == 2
    forgotten = await two.backend(pb.InvalidateTokenCacheRequest(session_id=others.session_id))
    assert forgotten.invalidated_count == 2
    assert await outcome(one, tokens) is None
    everything = pb.InvalidateTokenCacheRequest(all=True)
    assert (await one.backend.refusal(everything)).told == DENIED
    assert (await one.operator(everything)).invalidated_count == 1
    assert (await one.backend(pb.GetTokenCacheStatsRequest())).total.size == 0


async def test_operator_is_limited_to_its_methods_and_apps(
    database_urls: DatabaseUrls, redis_url: str, tmp_path: Path
) -> None:
    apps = tmp_path / "apps.toml"
    apps.write_text('[apps.other]\njwt_issuer = "other"\n')
    entries = [
        entry("all", "t1"),
        entry("no-methods", "t2", methods="GetTokenCacheStats"),
        entry("other-app", "t3", apps="other"),
    ]
    variables = {"ADMIN_TOKENS": ",".join(entries), "APPS_FILE": str(apps)}
    async with running_server(database_urls, redis_url, Role.RPC, RULES, **variables) as server:
        everything = pb.InvalidateTokenCacheRequest(app_id="default", all=True)
        answers = [await told(server.bearer(token), everything) for token in ("t1", "t2", "t3")]
        assert answers == [None, DENIED, DENIED]
        everything.app_id = "other"
        assert await told(server.bearer("t3"), everything) is None
        assert await told(server.bearer("t1"), pb.GetTokenCacheStatsRequest()) == DENIED  # a service's


async def test_idle_stream_is_rechecked_without_an_invalidation(database_urls: DatabaseUrls, redis_url: str) -> None:
    assert StreamRule().recheck_s <= 60.0
    often = replace(RULES, sync=replace(RULES.sync, streams=StreamRule(recheck_s=0.3)))
    async with running_server(database_urls, redis_url, rules=often) as server:
        tokens = await create(server)
        stream = server.bearer(tokens.access_token).watch()
        await stream.opened()
        await run_sql(server.urls.admin_url, "UPDATE users SET disabled_at = now()")
        async with asyncio.timeout(ENDED_WITHIN_S):
            assert (await end_of(stream))[1] == REVOKED


async def test_sessions_without_keys_are_refused_with_the_missing_setting(
    database_urls: DatabaseUrls, redis_url: str
) -> None:
    async with running_server(database_urls, redis_url, rules=RULES, SESSION_KEYS="", SESSION_SECRETS="") as server:
        refusal = await server.backend.refusal(pb.CreateSessionRequest(user_id="ann"))
        assert refusal.told == ("FAILED_PRECONDITION", "NOT_CONFIGURED")
        assert "SYNCBEAT_SESSION_KEYS" in refusal.message
        assert (await server.backend(pb.RevokeUserRequest(user_id="ann"))).revoked_session_count == 0
