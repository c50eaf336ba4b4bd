"""Cost of authentication in microseconds of CPU: from the cache, by signature, and around a whole call."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf.message import Message

from bench.call_stand_ins import AllAccepted, CallContext
from bench.figure import Better, Figure, Options, Round, measure_pairs
from syncbeat.v1 import directory_service_pb2
from syncbeat_server.auth.accounts.account_status_cache import AccountStatusCache
from syncbeat_server.auth.accounts.caller_caches import CallerCaches
from syncbeat_server.auth.accounts.token_cache import TokenCache
from syncbeat_server.auth.model import Issuer, KeyRow
from syncbeat_server.auth.service import Authenticator, Credentials
from syncbeat_server.auth.tokens.bearer import parse_bearer
from syncbeat_server.auth.tokens.keys import key_table
from syncbeat_server.auth.tokens.verify import mint, parse_token, verify_token
from syncbeat_server.clock import SystemClock
from syncbeat_server.ops.metrics import Metrics
from syncbeat_server.rpc.pipeline.access import access_policies
from syncbeat_server.rpc.pipeline.call_context import Call
from syncbeat_server.rpc.pipeline.call_lifecycle import Context
from syncbeat_server.rpc.pipeline.handler_pipeline import HandlerPipeline
from syncbeat_server.rpc.pipeline.load_shedding import Admission

_ISSUER = Issuer("default", "https://issuer.example")
_USER = "1f0c7a52-6f6c-4d3e-9d6b-0f3f3f6f9a10"
_SECRET = "0123456789abcdef0123456789abcdef"
_EC_KEY = ec.generate_private_key(ec.SECP256R1())
_REQUIRE: Any = {"require": ["exp", "iat", "iss", "aud", "sub"]}
_SIGN = {
    "HS256": KeyRow(_ISSUER, "k", "HS256", _SECRET),
    "ES256": KeyRow(_ISSUER, "k", "ES256", _EC_KEY),
}
_CHECK = {"HS256": _SECRET, "ES256": _EC_KEY.public_key()}
_SERVICE = directory_service_pb2.DESCRIPTOR.services_by_name["DirectoryService"]


def hs256(options: Options) -> Figure:
    """Measure parsing and verifying a token signed by HS256, against PyJWT's bare decode."""
    return _measure_signature("auth_hs256_us", "HS256", 4_000, options)


def es256(options: Options) -> Figure:
    """Measure the same for ES256."""
    return _measure_signature("auth_es256_us", "ES256", 2_000, options)


def cached(options: Options) -> Figure:
    """Measure a call whose token was verified within the last minute, against decoding it again with PyJWT."""
    token = _token("HS256")
    authenticator = _authenticator(token)
    values = [f"Bearer {token}"]
    assert authenticator.cached(parse_bearer(values)) is not None
    decode = _pyjwt("HS256", token)
    return measure_pairs(
        "auth_cached_us",
        "us of CPU",
        Better.LESS,
        options,
        lambda: _cost(lambda: authenticator.cached(parse_bearer(values)), 40_000),
        lambda: _cost(decode, 4_000),
        baseline_is="PyJWT's decode of the same token",
    )


def interceptor(options: Options) -> Figure:
    """Measure everything around a unary call, against a handler that only reads, parses and serializes.

    That is the watch over the reading, request id, metrics, deadline, authentication, parsing and validation.
    """
    token = _token("HS256")
    handler = _handler(_authenticator(token))
    data = directory_service_pb2.GetDeviceRequest(device_id="phone").SerializeToString()
    context = cast(Context, CallContext(token, data))

    async def bare(_requests: object, context: Context) -> bytes:
        directory_service_pb2.GetDeviceRequest.FromString(await context.read())
        return _ANSWER.SerializeToString()

    return measure_pairs(
        "auth_interceptor_us",
        "us of CPU",
        Better.LESS,
        options,
        lambda: _cost_of_calls(lambda: handler(None, context), 8_000),
        lambda: _cost_of_calls(lambda: bare(None, context), 8_000),
        baseline_is="a handler that only reads, parses and serializes",
    )


_ANSWER = directory_service_pb2.GetDeviceResponse()


def _measure_signature(name: str, algorithm: str, count: int, options: Options) -> Figure:
    token, table = _token(algorithm), key_table([KeyRow(_ISSUER, "k", algorithm, _CHECK[algorithm])])
    clock = SystemClock()

    def ours() -> object:
        unverified = parse_token(token)
        header = unverified.header
        return verify_token(unverified, table[unverified.issuer, header.kid, header.algorithm], clock.now())

    decode = _pyjwt(algorithm, token)
    return measure_pairs(
        name,
        "us of CPU",
        Better.LESS,
        options,
        lambda: _cost(ours, count),
        lambda: _cost(decode, count),
        baseline_is="PyJWT's decode with issuer, audience and required claims",
    )


def _token(algorithm: str) -> str:
    return mint(_SIGN[algorithm], _USER, datetime.now(UTC), timedelta(hours=1))


def _pyjwt(algorithm: str, token: str) -> Callable[[], object]:
    key: Any = _CHECK[algorithm]
    return lambda: jwt.decode(
        token, key, algorithms=[algorithm], issuer=_ISSUER.name, audience=_ISSUER.audiences[0], options=_REQUIRE
    )


def _authenticator(token: str) -> Authenticator:
    """Return an authenticator that has verified this token."""
    clock, rows = SystemClock(), key_table([KeyRow(_ISSUER, "k", "HS256", _SECRET)])
    caches = CallerCaches(cast(AccountStatusCache, AllAccepted()), TokenCache(clock, 100))
    authenticator = Authenticator(Credentials(rows, {}, {}, {}), caches, clock)
    asyncio.run(_authenticate(authenticator, token))
    return authenticator


async def _authenticate(authenticator: Authenticator, token: str) -> None:
    assert (await authenticator.authenticate(parse_bearer([f"Bearer {token}"]))).name == _USER


def _handler(authenticator: Authenticator) -> Callable[[object, Context], Awaitable[bytes]]:
    async def nothing(_request: Message, _call: Call) -> Message:
        return _ANSWER

    name = "GetDevice"
    admission = Admission(1_000, lambda: 0.0, lambda: 1.0, random.random, lambda _rank: None)
    pipeline = HandlerPipeline(authenticator, Metrics().rpc, SystemClock(), admission)
    handler = pipeline.handler(_SERVICE.methods_by_name[name], access_policies(_SERVICE)[name], nothing)
    return cast(Callable[[object, Context], Awaitable[bytes]], handler.stream_unary)


def _cost(work: Callable[[], object], count: int) -> Round:
    start = time.thread_time()
    for _ in range(count):
        work()
    return Round((time.thread_time() - start) / count * 1e6)


def _cost_of_calls(work: Callable[[], Awaitable[object]], count: int) -> Round:
    async def calls() -> Round:
        start = time.thread_time()
        for _ in range(count):
            await work()
        return Round((time.thread_time() - start) / count * 1e6)

    return asyncio.run(calls())
