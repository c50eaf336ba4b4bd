"""Refused tokens are told to the operator, by cause, and to the caller as before."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import grpc
import jwt
import pytest

from syncbeat.v1 import auth_service_pb2, directory_service_pb2, push_service_pb2
from syncbeat_server.auth.tokens.verify import mint
from syncbeat_server.errors import TokenFault
from tests.docs.pages import ROOT
from tests.support.databases import DatabaseUrls
from tests.support.fake_clock import wait_until
from tests.support.ports import free_port
from tests.support.rpc_server import KEY, METHODS, SECRET, Caller, Refusal, Server, running_server

pytestmark = pytest.mark.rpc

REQUEST = directory_service_pb2.ListDevicesRequest()
LOGGER = "syncbeat_server.rpc.pipeline.call_lifecycle"


def token(key: Any = SECRET, kid: str = "k1", header: dict[str, str] | None = None, **changes: Any) -> str:
    """A good token of the test's issuer but for these changes; a claim that is None is left out."""
    now = int(datetime.now(UTC).timestamp())
    good = {"iss": "syncbeat", "sub": "ann", "aud": "authenticated", "role": "authenticated", "session_id": "s"}
    claims = {**good, "iat": now, "exp": now + 600, **changes}
    kept = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode(kept, key, "HS256", headers={"kid": kid, **(header or {})})


def past() -> int:
    return int(datetime.now(UTC).timestamp()) - 3600


REFUSED: dict[str, tuple[TokenFault, str, str]] = {
    "an opaque token": (TokenFault.MALFORMED, "opaque", "no JWT, and no token of a service or admin in the settings"),
    "no iss": (TokenFault.MALFORMED, token(iss=None), "it has no `iss`"),
    "another issuer": (
        TokenFault.UNKNOWN_ISSUER,
        token(iss="https://x.example"),
        "`iss` is 'https://x.example'; known: ['syncbeat', 'syncbeat:default'] (SYNCBEAT_JWT_ISSUER)",
    ),
    "another algorithm": (
        TokenFault.UNKNOWN_KEY,
        jwt.encode({"iss": "syncbeat"}, "x" * 64, "HS512", headers={"kid": "k7"}),
        "`kid` is 'k7', `alg` 'HS512'; the issuer's kids here: ['k1']",
    ),
    "another secret": (TokenFault.SIGNATURE, token("y" * 32), "not made with the HS256 key 'k1' of this issuer"),
    "no session_id": (
        TokenFault.CLAIM_MISSING,
        token(session_id=None, role=None),
        "it has no role,session_id; SYNCBEAT_JWT_OPTIONAL=role,session_id lets in tokens without",
    ),
    "no exp": (TokenFault.CLAIM_MISSING, token(exp=None), "it has no exp"),
    "no sub": (TokenFault.CLAIM_MISSING, token(sub=None), "it has no sub"),
    "another audience": (
        TokenFault.AUDIENCE,
        token(aud="mobile"),
        "`aud` is 'mobile'; accepted: authenticated (SYNCBEAT_JWT_AUDIENCE)",
    ),
    "another role": (
        TokenFault.ROLE,
        token(role="editor"),
        "`role` is 'editor'; accepted: authenticated (SYNCBEAT_JWT_ROLES)",
    ),
    "an API key": (TokenFault.ROLE, token(role="anon"), "`role` is 'anon': an API key, and no user's token"),
    "another type": (
        TokenFault.TYPE,
        token(header={"typ": "logout+jwt"}),
        "the header's `typ` is 'logout+jwt'; accepted: at+jwt, jwt",
    ),
    "an ID token": (TokenFault.TYPE, token(token_use="id"), "its claims are those of an ID, refresh or logout token"),
    "a client's own": (TokenFault.CLIENT, token(azp="ann"), "its subject is the client itself"),
    "no subject": (TokenFault.SUBJECT, token(sub=""), "`sub` is to be 1 to 128 printable bytes"),
    "no session": (TokenFault.SESSION, token(session_id=""), "`session_id` is to be 1 to 128 printable bytes"),
    "a text as time": (TokenFault.TIME, token(iat="x"), "a time is no number"),
    "early": (TokenFault.TIME, token(iat=past() + 86_400), "`iat` or `nbf` is ahead of this machine's clock"),
    "late": (TokenFault.EXPIRED, token(exp=past()), "this machine's clock is at 2"),
}


@dataclass(frozen=True)
class Deployment:
    """A server, and the port of its metrics."""

    server: Server
    port: int

    async def refused(self) -> dict[str, int]:
        """The refused tokens by cause, as /metrics has them."""
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{self.port}/metrics") as answer,
        ):
            text = await answer.text()
        found = re.findall(r'^syncbeat_tokens_refused_total\{cause="(\w+)"\} (\d+)', text, re.MULTILINE)
        return {cause: int(count) for cause, count in found}


@pytest.fixture
async def deployment(database_urls: DatabaseUrls, redis_url: str) -> AsyncIterator[Deployment]:
    port = free_port()
    async with running_server(database_urls, redis_url, OPS_LISTEN=f"127.0.0.1:{port}") as server:
        yield Deployment(server, port)


def told(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """Return what the log has of refused tokens."""
    return [vars(record) for record in caplog.records if record.name == LOGGER]


@pytest.fixture(autouse=True)
def logged_at_info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, LOGGER)


async def test_refused_token_is_logged_and_counted_by_cause(
    deployment: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    counts: dict[str, int] = {}
    for name, (cause, shown, detail) in REFUSED.items():
        caplog.clear()
        refusal = await deployment.server.bearer(shown).refusal(REQUEST)
        (line,) = told(caplog)
        assert (line["cause"], line["levelno"]) == (cause, logging.INFO), name
        assert detail in line["detail"], name
        assert shown not in str(line), name
        assert detail not in str(refusal), name
        counts[cause] = counts.get(cause, 0) + 1
    assert await deployment.refused() == counts


async def test_refused_token_tells_its_caller_the_reason_alone(deployment: Deployment) -> None:
    def without_id(refusal: Refusal) -> tuple[object, ...]:
        metadata = {name: value for name, value in refusal.metadata.items() if name not in ("request_id", "requestId")}
        return refusal.code, refusal.reason, refusal.message, metadata, refusal.fields

    forged = await deployment.server.bearer(token("y" * 32)).refusal(REQUEST)
    lacking = await deployment.server.bearer(token(session_id=None)).refusal(REQUEST)
    assert without_id(forged) == without_id(lacking)
    other_issuer = await deployment.server.bearer(token(iss="other")).refusal(REQUEST)
    other_kid = await deployment.server.bearer(jwt.encode({"iss": "syncbeat"}, "x" * 64, "HS512")).refusal(REQUEST)
    assert without_id(other_issuer) == without_id(other_kid)


async def test_refused_call_without_a_token_is_counted(
    deployment: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    channel = deployment.server.channel
    await Caller(channel, ()).refusal(REQUEST)
    await Caller(channel, (("authorization", "Basic abc"),)).refusal(REQUEST)
    await Caller(channel, ()).refusal(auth_service_pb2.RefreshSessionRequest(refresh_token="sbr_x"))
    await Caller(channel, ()).refusal(
        push_service_pb2.AcknowledgeDeliveryRequest(ack_token="x", kind=push_service_pb2.ACKNOWLEDGE_KIND_RECEIVED)
    )
    names = ["no_credentials", "no_bearer", "refresh_token", "ack_token"]
    assert [line["cause"] for line in told(caplog)] == names
    assert await deployment.refused() == dict.fromkeys(names, 1)


async def test_revoked_token_is_logged_with_what_revoked_it(
    deployment: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    user = deployment.server.user("ann")
    await user(REQUEST)
    await deployment.server.backend(auth_service_pb2.RevokeUserRequest(user_id="ann"))
    await wait_until(lambda: _is_revoked(user))
    line = told(caplog)[-1]
    assert (line["cause"], line["detail"], line["issuer"]) == ("revoked", "issued before RevokeUser", "syncbeat")
    await deployment.server.backend(directory_service_pb2.DisableUserRequest(user_id="bob"))
    await deployment.server.user("bob").refusal(REQUEST)
    assert told(caplog)[-1]["detail"] == "its user is disabled or deleted"


async def _is_revoked(user: Caller) -> bool:
    return await user.outcome(METHODS["ListDevicesRequest"], b"") is not None


async def test_stream_that_outlives_its_token_is_no_refusal(
    deployment: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    watch = deployment.server.bearer(mint(KEY, "ann", datetime.now(UTC), timedelta(seconds=1.5))).watch()
    await watch.opened()
    with pytest.raises(grpc.aio.AioRpcError, match="expired"):
        await watch.until(lambda kind, _: not kind)
    assert not told(caplog)
    assert await deployment.refused() == {}


def test_refusal_causes_are_all_on_the_page() -> None:
    page = (
        (ROOT / "docs/tokens.md").read_text(encoding="utf-8").split("## Why a token was refused")[1].split("\n## ")[0]
    )
    named = re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)
    assert named == list(TokenFault)
