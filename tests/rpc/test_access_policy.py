"""Tests the access policy: every RPC with every kind of credentials that should not get through."""

from __future__ import annotations

import base64
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import jwt
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from syncbeat.v1 import directory_service_pb2, sync_service_pb2
from syncbeat_devtools.embedded import EmbeddedStores
from syncbeat_server.auth.model import MAX_LEEWAY, KeyRow
from syncbeat_server.auth.tokens.verify import mint
from syncbeat_server.rpc.contract.options import access_of
from tests.support.databases import DatabaseUrls, create_database, drop_database
from tests.support.forged_tokens import CANARY, HOSTED, OTHER_SECRET, SHOP, Forger
from tests.support.forged_tokens import SECRET as FORGED_SECRET
from tests.support.held_clock import HeldClock
from tests.support.rpc_server import (
    BACKEND,
    IMPLEMENTED,
    ISSUER,
    KEY,
    KID,
    METHODS,
    Caller,
    Server,
    entry,
    running_server,
)
from tests.support.valid_requests import request_of

pytestmark = [pytest.mark.rpc, pytest.mark.asyncio(loop_scope="module")]

INVALID = ("UNAUTHENTICATED", "TOKEN_INVALID")
EXPIRED = ("UNAUTHENTICATED", "TOKEN_EXPIRED")
DENIED = ("PERMISSION_DENIED", "ACCESS_DENIED")
NARROW, TENANT, TWO_APPS = "may-call-two-methods", "may-act-for-one-app", "may-act-for-two-apps"

EC_KEY = ec.generate_private_key(ec.SECP256R1())
RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
SIGNERS = {
    "ES256": KeyRow(ISSUER, "ec", "ES256", EC_KEY),
    "RS256": KeyRow(ISSUER, "rsa", "RS256", RSA_KEY),
}


def jwks() -> str:
    keys = [
        jwt.algorithms.ECAlgorithm.to_jwk(EC_KEY.public_key(), as_dict=True) | {"kid": "ec", "alg": "ES256"},
        jwt.algorithms.RSAAlgorithm.to_jwk(RSA_KEY.public_key(), as_dict=True) | {"kid": "rsa", "alg": "RS256"},
    ]
    return json.dumps({"keys": keys})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guarded(
    stores: EmbeddedStores, template: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Server]:
    """A server with a JWKS file and services that may not do everything."""
    file = Path(tmp_path_factory.mktemp("keys")) / "jwks.json"
    file.write_text(jwks(), encoding="utf-8")
    apps = file.with_name("apps.toml")
    apps.write_text("".join(f'[apps.{name}]\njwt_issuer = "{name}"\n' for name in ("other", "third")))
    tokens = [
        entry("backend", BACKEND),
        entry("narrow", NARROW, methods="GetHint|ListChanges"),
        entry("tenant", TENANT, apps="other"),
        entry("two", TWO_APPS, apps="other|third"),
    ]
    urls = await create_database(stores, "rpc_access", template)
    variables: Any = {"JWKS_FILE": str(file), "APPS_FILE": str(apps), "SERVICE_TOKENS": ",".join(tokens)}
    async with running_server(urls, stores.redis_url, **variables) as running:
        yield running
    await drop_database(stores, urls.name)


def lets_in(method: MethodDescriptor, kind: str) -> bool:
    return kind in access_of(method)


def token(header: dict[str, Any] | None = None, key: Any = KEY.key, **claims: Any) -> str:
    """A user's token, good but for what is named; None leaves a claim out."""
    now = datetime.now(UTC).timestamp()
    whole = {"iss": "syncbeat", "aud": "authenticated", "sub": "u", "iat": now, "exp": now + 3600}
    whole |= {"role": "authenticated", "session_id": "s", **claims}
    header = {"alg": "HS256", "kid": KID, **(header or {})}
    return jwt.encode(
        {name: value for name, value in whole.items() if value is not None}, key, header["alg"], headers=header
    )


def signed_by_hand(header: dict[str, Any], key: bytes) -> str:
    """Return what a library refuses to sign: HMAC with a public key, or nothing at all."""
    _, payload, _ = token().split(".")
    head = base64.urlsafe_b64encode(json.dumps(header).encode()).rstrip(b"=")
    content = head + b"." + payload.encode()
    signature = base64.urlsafe_b64encode(hmac.digest(key, content, "sha256")).rstrip(b"=") if key else b""
    return (content + b"." + signature).decode()


def public_pem(key: Any) -> bytes:
    kind, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    return cast(bytes, key.public_key().public_bytes(kind, form))


def tampered() -> str:
    header, _, signature = token().split(".")
    return ".".join((header, token(sub="somebody else").split(".")[1], signature))


def bearer(text: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {text}"),)


HOUR = 3600
FORGED: dict[str, tuple[Callable[[], tuple[tuple[str, str], ...]], tuple[str, str]]] = {
    "no token": (tuple, INVALID),
    "an empty value": (lambda: (("authorization", ""),), INVALID),
    "no scheme": (lambda: (("authorization", token()),), INVALID),
    "another scheme": (lambda: (("authorization", f"Basic {token()}"),), INVALID),
    "a scheme alone": (lambda: (("authorization", "Bearer "),), INVALID),
    "two values": (lambda: bearer(token()) * 2, INVALID),
    "an unknown token": (lambda: bearer("nobody-gave-me-this"), INVALID),
    "three dots": (lambda: bearer("a.b.c"), INVALID),
    "a token of lists": (lambda: bearer("W10.W10.W10"), INVALID),
    "deep JSON": (lambda: bearer("W1tb" * 1500 + ".W10.W10"), INVALID),
    "the digest of a service token": (lambda: bearer(entry("x", BACKEND).split(":")[1]), INVALID),
    "forged": (lambda: bearer(token(key="x" * 32)), INVALID),
    "tampered": (lambda: bearer(tampered()), INVALID),
    "no algorithm": (lambda: bearer(signed_by_hand({"alg": "none", "kid": KID}, b"")), INVALID),
    "another algorithm": (lambda: bearer(token({"alg": "HS512"}, key=cast(str, KEY.key) * 2)), INVALID),
    "HS256 with the public RSA key": (
        lambda: bearer(signed_by_hand({"alg": "HS256", "kid": "rsa"}, public_pem(RSA_KEY))),
        INVALID,
    ),
    "HS256 with the public EC key": (
        lambda: bearer(signed_by_hand({"alg": "HS256", "kid": "ec"}, public_pem(EC_KEY))),
        INVALID,
    ),
    "an EC token by the RSA kid": (lambda: bearer(token({"alg": "ES256", "kid": "rsa"}, key=EC_KEY)), INVALID),
    "an unknown kid": (lambda: bearer(token({"alg": "ES256", "kid": "k9"}, key=EC_KEY)), INVALID),
    "a kid of another key": (lambda: bearer(token({"kid": "ec"})), INVALID),
    "a kid that is no text": (lambda: bearer(signed_by_hand({"alg": "HS256", "kid": 1}, b"k")), INVALID),
    "another issuer": (lambda: bearer(token(iss="somebody")), INVALID),
    "another audience": (lambda: bearer(token(aud="others")), INVALID),
    "no audience": (lambda: bearer(token(aud=None)), INVALID),
    "no subject": (lambda: bearer(token(sub=None)), INVALID),
    "an empty subject": (lambda: bearer(token(sub="")), INVALID),
    "a long subject": (lambda: bearer(token(sub="u" * 129)), INVALID),
    "a subject with NUL": (lambda: bearer(token(sub="u\0")), INVALID),
    "a subject with half a character": (lambda: bearer(token(sub="\ud800")), INVALID),
    "no expiry": (lambda: bearer(token(exp=None)), INVALID),
    "an expiry beyond all time": (lambda: bearer(token(exp=10**18)), INVALID),
    "an expiry in words": (lambda: bearer(token(exp="tomorrow")), INVALID),
    "not valid yet": (lambda: bearer(token(nbf=datetime.now(UTC).timestamp() + HOUR)), INVALID),
    "issued in the future": (lambda: bearer(token(iat=datetime.now(UTC).timestamp() + HOUR)), INVALID),
    "no role": (lambda: bearer(token(role=None)), INVALID),
    "an unknown role": (lambda: bearer(token(role="admin")), INVALID),
    "no session": (lambda: bearer(token(session_id=None)), INVALID),
    "an API key": (lambda: bearer(token(role="anon")), INVALID),
    "expired": (lambda: bearer(token(exp=datetime.now(UTC).timestamp() - HOUR)), EXPIRED),
    "expired and forged": (lambda: bearer(token(key="x" * 32, exp=datetime.now(UTC).timestamp() - HOUR)), INVALID),
}


async def test_forged_tokens_are_refused_over_the_wire(
    database_urls: DatabaseUrls, redis_url: str, tmp_path: Path
) -> None:
    forger = Forger(datetime.now(UTC))
    jwks_file, apps = tmp_path / "jwks.json", tmp_path / "apps.toml"
    jwks_file.write_bytes(forger.jwks())
    apps.write_text(f'[apps.shop]\njwt_issuer = "{SHOP.name}"\njwt_secrets = "hs={OTHER_SECRET}"\n')
    variables: Any = {
        "JWT_SECRETS": f"hs={FORGED_SECRET},old={FORGED_SECRET[::-1]}",
        "JWT_ISSUER": HOSTED.name,
        "JWT_SUBJECTS": "uuid",
    }
    variables |= {"JWKS_FILE": str(jwks_file), "APPS_FILE": str(apps)}
    method = METHODS["ListDevicesRequest"]
    async with running_server(database_urls, redis_url, **variables) as server:
        for kid, token_ in forger.good_tokens().items():
            assert await server.bearer(token_).outcome(method, b"") is None, kid
        # gRPC sends no control characters and refuses long metadata by itself; HTTP counts spaces at an end as nothing.
        sent = {
            name: text
            for name, text in forger.forged().items()
            if text.isprintable() and text == text.strip() and len(text) < 6_000
        }
        assert len(sent) > 140
        for name, token_ in sent.items():
            cost_s = took_s = 1.0
            for attempt in range(30):  # of which some meet what the server does besides, or a busy machine
                start, began = time.process_time(), time.monotonic()
                refusal = await server.bearer(token_).outcome(method, b"")
                assert refusal is not None, name
                cost_s = min(cost_s, time.process_time() - start)  # of both sides
                took_s = min(took_s, time.monotonic() - began)
                assert refusal.told == INVALID, name
                assert CANARY not in refusal.message
                if attempt >= 4 and took_s < 0.02:
                    break
            assert cost_s < 0.01, name
            assert took_s < 0.02, f"{name}: who refuses it waits for something"


GUARDED = [method for method in IMPLEMENTED if not lets_in(method, "PUBLIC")]
each_guarded = pytest.mark.parametrize("method", GUARDED, ids=lambda method: method.name)


@each_guarded
async def test_bad_credentials_are_refused_by_every_rpc(guarded: Server, method: MethodDescriptor) -> None:
    for name, (metadata, told) in FORGED.items():
        caller = Caller(guarded.channel, metadata())
        for data in (request_of(method).SerializeToString(), b"\xff"):
            refusal = await caller.raw_refusal(method, data)
            assert refusal.told == told, name
            assert not refusal.fields


@each_guarded
async def test_access_denied_to_the_wrong_kind_of_caller(guarded: Server, method: MethodDescriptor) -> None:
    wrong = [] if lets_in(method, "ADMIN") else [guarded.operator]
    if not lets_in(method, "USER"):
        wrong += [guarded.user("u"), guarded.user("backend"), guarded.user("u", key=SIGNERS["ES256"])]
    for caller in wrong:
        for data in (request_of(method).SerializeToString(), b"\xff"):
            assert (await caller.raw_refusal(method, data)).told == DENIED


async def test_access_test_covers_each_kind_of_caller() -> None:
    assert {lets_in(method, "USER") for method in IMPLEMENTED} == {True, False}


@each_guarded
async def test_service_allow_list_of_methods(guarded: Server, method: MethodDescriptor) -> None:
    outcome = await guarded.bearer(NARROW).outcome(method, request_of(method).SerializeToString())
    allowed = method.name in ("GetHint", "ListChanges")
    assert (outcome is None or outcome.told != DENIED) is allowed


@each_guarded
async def test_service_allow_list_of_apps(guarded: Server, method: MethodDescriptor) -> None:
    before = await guarded.rows()
    for app_id, data in (("default", ""), ("third", ""), ("Other", ""), ("other ", "")):
        request = named(method, app_id=app_id, user_id="u")
        assert (await guarded.bearer(TENANT).refusal(request)).told == DENIED, (app_id, data)
    for app_id in ("nobody's", "Default"):
        request = named(method, app_id=app_id, user_id="u")
        assert (await guarded.backend.refusal(request)).told == DENIED, "not even a service for all apps"
    unnamed = await guarded.bearer(TWO_APPS).refusal(named(method, user_id="u"))
    if not lets_in(method, "SERVICE"):
        assert unnamed.told == DENIED
        return
    assert unnamed.told == ("INVALID_ARGUMENT", "INVALID_FIELD")
    assert unnamed.fields == ("app_id",)
    assert await guarded.rows() == before


async def test_service_of_one_app_defaults_to_it(guarded: Server) -> None:
    register = directory_service_pb2.RegisterDeviceRequest(
        user_id="tenant's", device_id="d", platform=directory_service_pb2.PLATFORM_IOS
    )
    await guarded.bearer(TENANT)(register)
    listed = directory_service_pb2.ListDevicesRequest(user_id="tenant's")
    assert len((await guarded.bearer(TENANT)(listed)).devices) == 1
    listed.app_id = "other"
    assert len((await guarded.bearer(TWO_APPS)(listed)).devices) == 1
    listed.app_id = "third"
    assert len((await guarded.bearer(TWO_APPS)(listed)).devices) == 0
    assert len((await guarded.backend(directory_service_pb2.ListDevicesRequest(user_id="tenant's"))).devices) == 0


def named(method: MethodDescriptor, **fields: str) -> Message:
    request = request_of(method)
    for name, value in fields.items():
        if name in method.input_type.fields_by_name:
            setattr(request, name, value)
    return request


@each_guarded
async def test_user_cannot_name_another_user_or_app(guarded: Server, method: MethodDescriptor) -> None:
    if not lets_in(method, "USER"):
        return
    before = await guarded.rows()
    for fields in ({"user_id": "v"}, {"user_id": "U"}, {"app_id": "other"}):
        assert (await guarded.user("u").refusal(named(method, **fields))).told == DENIED
    assert await guarded.rows() == before


@pytest.mark.parametrize("algorithm", SIGNERS)
async def test_jwks_file_verifies_asymmetric_tokens(guarded: Server, algorithm: str) -> None:
    signer = SIGNERS[algorithm]
    user = guarded.user(f"user of {algorithm}", key=signer)
    register = directory_service_pb2.RegisterDeviceRequest(device_id="d", platform=directory_service_pb2.PLATFORM_WEB)
    assert (await user(register)).device.user_id == f"user of {algorithm}"
    assert (await user(sync_service_pb2.GetHintRequest(device_id="d"))).hint.HasField("poll_interval")
    stranger = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    other = replace(signer, key=stranger if algorithm == "RS256" else ec.generate_private_key(ec.SECP256R1()))
    assert (await guarded.user("u", key=other).refusal(register)).told == INVALID


async def test_token_expiry_is_enforced_after_acceptance(
    monkeypatch: pytest.MonkeyPatch, database_urls: DatabaseUrls, redis_url: str
) -> None:
    clock = HeldClock.of_servers(monkeypatch)
    life_s = 20.0  # less than what is accepted is remembered for
    async with running_server(database_urls, redis_url) as server:
        user = server.bearer(mint(KEY, "u", clock.now(), timedelta(seconds=life_s)))
        request = directory_service_pb2.ListDevicesRequest()
        await user(request)
        # The clocks of issuer and server may differ.
        clock.move(life_s + MAX_LEEWAY.total_seconds() - 1.0)
        await user(request)
        clock.move(1.0)
        assert (await user.refusal(request)).told == EXPIRED
