"""Tokens of other issuers over a real channel: odd numbers, a user that is revoked, keys that are not known yet."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec
from google.rpc import error_details_pb2, status_pb2

from syncbeat.v1 import auth_service_pb2, directory_service_pb2
from tests.support.databases import DatabaseUrls
from tests.support.forged_tokens import SECRET, USER, Forger
from tests.support.held_clock import HeldClock
from tests.support.http_sites import site
from tests.support.rpc_server import METHODS, Caller, Server, running_server

pytestmark = pytest.mark.rpc

INVALID, EXPIRED = ("UNAUTHENTICATED", "TOKEN_INVALID"), ("UNAUTHENTICATED", "TOKEN_EXPIRED")
REVOKED, DOWN = ("UNAUTHENTICATED", "TOKEN_REVOKED"), ("UNAVAILABLE", "DEPENDENCY_DOWN")
ISSUER = "https://project.example/auth/v1"
KEYS = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
LIST = directory_service_pb2.ListDevicesRequest()


@pytest.fixture
async def server(database_urls: DatabaseUrls, redis_url: str) -> AsyncIterator[Server]:
    variables: Any = {"JWT_SECRETS": f"hs={SECRET}", "JWT_ISSUER": ISSUER, "JWT_SUBJECTS": "uuid"}
    async with running_server(database_urls, redis_url, **variables) as running:
        yield running


NUMBERS = ["253402300769", "253402300770", "253402300799", "253402214400", "253402214399", "1e11", "9e18", "1e308"]
NUMBERS += ["-1", "-62135596801", "true", '"1"', "null", "[1]", "0", "0.5", "1E3", "1e-9", "18446744073709551616"]


@pytest.mark.parametrize("claim", ["exp", "iat", "nbf", "auth_time"])
async def test_numeric_claims_stay_within_computable_bounds(server: Server, claim: str) -> None:
    forger = Forger(HeldClock().now())
    for number in NUMBERS:
        body = json.dumps(forger.claims(**{claim: "@"})).replace('"@"', number)
        user = server.bearer(forger.raw({"alg": "HS256", "kid": "hs"}, body.encode()))
        far = float(number) > time.time() if number[0] in "0123456789" else False
        out_of_range = number[0] not in "0123456789" or float(number) >= 253402214400
        for _ in range(2):  # the second time from the cache, if it was let in
            outcome = await user.outcome(METHODS["ListDevicesRequest"], b"")
            told = None if outcome is None else outcome.told
            if out_of_range or (far and claim != "exp"):
                assert told == INVALID, number
            else:
                assert told == (EXPIRED if claim == "exp" and not far else None), number


async def test_stream_opens_with_a_token_that_never_expires(server: Server) -> None:
    forger = Forger(HeldClock().now())
    user = server.bearer(forger.odd(exp=253402214399))
    await user(directory_service_pb2.RegisterDeviceRequest(device_id="d", platform=directory_service_pb2.PLATFORM_WEB))
    await user.watch(device_id="d").opened()


@pytest.mark.parametrize("ahead_s", [-3600, 0, 1, 15, 29])
async def test_revocation_kills_a_foreign_token_that_was_valid_then(server: Server, ahead_s: int) -> None:
    forger = Forger(HeldClock().now())
    at = int(forger.now.timestamp())
    used = server.bearer(forger.odd(iat=at + ahead_s, jti="used"))
    kept = server.bearer(forger.odd(iat=at + ahead_s, jti="kept for later"))
    await used(LIST)
    await server.backend(auth_service_pb2.RevokeUserRequest(user_id=USER))
    for caller in (used, kept):
        assert (await caller.refusal(LIST)).told == REVOKED


class Publisher:
    """Publishes the keys of an issuer."""

    def __init__(self) -> None:
        self.kids = ["k0"]
        self.requests = 0
        self.url = ""

    async def answer(self, _request: web.Request) -> web.Response:
        self.requests += 1
        entries = []
        for number, kid in enumerate(self.kids):
            public = jwt.algorithms.ECAlgorithm.to_jwk(KEYS[number].public_key(), as_dict=True)
            entries.append({**public, "kid": kid, "alg": "ES256", "use": "sig", "key_ops": ["verify"]})
        return web.json_response({"keys": entries})


@pytest.fixture
async def publisher() -> AsyncIterator[Publisher]:
    made = Publisher()
    async with site("/keys", made.answer) as address:
        made.url = f"{address}/keys"
        yield made


async def retry_after_s(caller: Caller) -> float:
    """Return the delay of RetryInfo."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await caller(LIST)
    trailers = dict(raised.value.trailing_metadata() or ())
    retry = error_details_pb2.RetryInfo()
    assert [one.Unpack(retry) for one in status_pb2.Status.FromString(trailers["grpc-status-details-bin"]).details]
    return float(retry.retry_delay.ToTimedelta().total_seconds())


async def test_unknown_kid_is_unavailable_until_the_next_jwks_fetch(
    database_urls: DatabaseUrls, redis_url: str, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = HeldClock.of_servers(monkeypatch)
    variables: Any = {"JWKS_URL": publisher.url, "JWT_SECRETS": "", "JWT_ISSUER": ISSUER, "JWT_SUBJECTS": "uuid"}

    def token(kid: str, key: int = 0) -> str:
        return jwt.encode(Forger(clock.now()).claims(), KEYS[key], "ES256", headers={"kid": kid})

    async with running_server(database_urls, redis_url, **variables) as server:
        await server.bearer(token("k0"))(LIST)
        assert (await server.bearer(token("invented")).refusal(LIST)).told == INVALID
        publisher.kids.append("k1")
        good, bad = server.bearer(token("k1", 1)), server.bearer(token("invented too"))
        for caller in (good, bad):
            assert (await caller.refusal(LIST)).told == DOWN
            assert 0 < await retry_after_s(caller) <= 30
        clock.move(30.0)
        await good(LIST)
        assert (await bad.refusal(LIST)).told == INVALID
        await server.bearer(token("k0"))(LIST)
        no_kid = server.bearer(jwt.encode(Forger(clock.now()).claims(), KEYS[0], "ES256"))
        assert (await no_kid.refusal(LIST)).told == INVALID, "which of the two is not said"


async def test_gotrue_legacy_secret_verifies_beside_published_keys(
    database_urls: DatabaseUrls, redis_url: str, publisher: Publisher
) -> None:
    variables: Any = {"JWKS_URL": publisher.url, "JWT_SECRETS": f"legacy={SECRET}", "JWT_ISSUER": ISSUER}
    variables |= {"JWT_PROFILE": "supabase", "JWT_SUBJECTS": ""}
    forger = Forger(HeldClock().now())
    good: list[dict[str, str]] = [{"kid": "Rb1Q0a9cEVDKYkrr"}, {}, {"kid": "legacy"}]
    bad: list[tuple[dict[str, str], str]] = [({"kid": "k0"}, SECRET), ({"kid": "legacy"}, "x" * 32), ({}, "x" * 32)]
    async with running_server(database_urls, redis_url, **variables) as server:
        for headers in ({"kid": "k0"}, {}):
            await server.bearer(jwt.encode(forger.claims(), KEYS[0], "ES256", headers=headers))(LIST)
        for header in good:
            await server.bearer(forger.raw({"alg": "HS256", **header}, forger.claims()))(LIST)
        for header, secret in bad:
            refused = server.bearer(forger.raw({"alg": "HS256", **header}, forger.claims(), secret.encode()))
            assert (await refused.refusal(LIST)).told == INVALID


async def test_kid_of_settings_is_not_overridden_by_jwks_url(
    database_urls: DatabaseUrls, redis_url: str, publisher: Publisher, caplog: pytest.LogCaptureFixture
) -> None:
    publisher.kids = ["hs", "other"]
    variables: Any = {"JWKS_URL": publisher.url, "JWT_SECRETS": f"hs={SECRET}", "JWT_ISSUER": ISSUER}
    variables |= {"JWT_SUBJECTS": "uuid"}
    forger = Forger(HeldClock().now())
    async with running_server(database_urls, redis_url, **variables) as server:
        await server.bearer(jwt.encode(forger.claims(), KEYS[1], "ES256", headers={"kid": "other"}))(LIST)
        await server.bearer(forger.good())(LIST)
        taken = server.bearer(jwt.encode(forger.claims(), KEYS[0], "ES256", headers={"kid": "hs"}))
        assert (await taken.refusal(LIST)).told == INVALID
    faults = [record.__dict__.get("fault", "") for record in caplog.records]
    assert "key 'hs': the settings have another key of this kid" in faults
