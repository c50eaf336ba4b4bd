"""CPU that limits add to a GetHint, in microseconds: the same path with limits and without, in turns."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from statistics import median
from typing import Any, cast

from google.protobuf.message import Message

from bench.call_stand_ins import AllAccepted, CallContext
from bench.figure import Better, Figure, Options, Round, measure_pairs
from syncbeat.v1 import sync_service_pb2 as pb
from syncbeat_devtools.embedded import running_stores
from syncbeat_server.auth.accounts.account_status_cache import AccountStatusCache
from syncbeat_server.auth.accounts.caller_caches import CallerCaches
from syncbeat_server.auth.accounts.token_cache import TokenCache
from syncbeat_server.auth.model import Issuer, KeyRow
from syncbeat_server.auth.service import Authenticator, Credentials
from syncbeat_server.auth.tokens.bearer import parse_bearer
from syncbeat_server.auth.tokens.keys import key_table
from syncbeat_server.auth.tokens.verify import mint
from syncbeat_server.clock import SystemClock
from syncbeat_server.ops.metrics import Metrics
from syncbeat_server.ratelimit.model import LimitSubject, MethodClass, Rate, Tier, TierLimit, TierPolicy
from syncbeat_server.ratelimit.quotas import QuotaCounters
from syncbeat_server.ratelimit.shared_limits import SharedLimits
from syncbeat_server.rpc.pipeline.access import access_policies
from syncbeat_server.rpc.pipeline.call_context import Call
from syncbeat_server.rpc.pipeline.call_lifecycle import Context
from syncbeat_server.rpc.pipeline.call_limits import CallLimits
from syncbeat_server.rpc.pipeline.handler_pipeline import HandlerPipeline
from syncbeat_server.rpc.pipeline.load_shedding import Admission
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.storage.redis.bus import open_redis

_CALLS, _AT_ONCE, _USERS = 8_192, 32, 512
_KEY = KeyRow(Issuer("default", "https://issuer.example", uuid_subjects=False), "k", "HS256", "k" * 32)
_SERVICE = pb.DESCRIPTOR.services_by_name["SyncService"]
_ANSWER = pb.GetHintResponse()
_CLOCK = SystemClock()
# The limits that a GetHint meets where all are set: of the user, the device and the app, and of the user's octets.
_TIER = Tier(
    "free",
    (
        TierLimit(LimitSubject.PRINCIPAL, MethodClass.HINT, Rate(50.0, 100), None),
        TierLimit(LimitSubject.DEVICE, MethodClass.HINT, Rate(50.0, 100), None),
        TierLimit(LimitSubject.APP, MethodClass.HINT, Rate(1e6, 1_000_000), None),
        TierLimit(LimitSubject.PRINCIPAL, MethodClass.BYTES, Rate(1e5, 1_000_000), None),
    ),
)
_USERS_OWN = Tier("free", _TIER.limits[:1])

Serve = Callable[[object, Context], Awaitable[bytes]]


def measure(options: Options) -> Figure:
    """Measure what a limit of users adds to a call, the sharing with other processes included; and what four add."""
    tokens = {f"user-{number}": _token(f"user-{number}") for number in range(_USERS)}
    with running_stores() as stores:

        def round_of(tier: Tier | None) -> Callable[[], Round]:
            return lambda: asyncio.run(_measure(stores.redis_url, tokens, tier))

        one = measure_pairs("limit_us", "us of CPU", Better.LESS, options, round_of(_USERS_OWN), round_of(None))
        four = measure_pairs("limit_us", "us of CPU", Better.LESS, options, round_of(_TIER), round_of(None))
    return replace(
        one,
        value=_added(one),
        notes={
            "call_us": round(one.value, 2),
            "four_limits_us": round(_added(four), 2),
            "baseline_is": "the same path without limits; each poll is of another device, and is told to Redis",
        },
    )


def _added(figure: Figure) -> float:
    return median(ours - baseline for ours, baseline in figure.runs)


def _token(user: str) -> str:
    return mint(_KEY, user, datetime.now(UTC), timedelta(hours=1))


def _poll(user: str) -> bytes:
    return pb.GetHintRequest(device_id=f"{user}-phone").SerializeToString()


async def _measure(redis_url: str, tokens: dict[str, str], tier: Tier | None) -> Round:
    caches = CallerCaches(cast(AccountStatusCache, AllAccepted()), TokenCache(_CLOCK, 2 * _USERS))
    authenticator = Authenticator(Credentials(key_table([_KEY]), {}, {}, {}), caches, _CLOCK)
    for token in tokens.values():
        await authenticator.authenticate(parse_bearer([f"Bearer {token}"]))
    polls = [cast(Context, CallContext(token, _poll(user))) for user, token in tokens.items()]
    async with open_redis(redis_url, _CLOCK, "bench") as bus:
        shared = SharedLimits(bus, _CLOCK)
        quotas = QuotaCounters(cast(Database, None), _CLOCK)  # no tier here has one, so it is never asked
        limits = CallLimits(shared, quotas, _CLOCK, lambda _app, _subject, _class: None)
        limits.adopt({} if tier is None else {"default": TierPolicy({tier.name: tier}, tier.name, None)})
        serve = _handler(authenticator, limits)
        sharing = asyncio.ensure_future(shared.run())
        await _calls(serve, polls, _CALLS // 4)
        start = time.thread_time()
        await _calls(serve, polls, _CALLS)
        used = time.thread_time() - start
        sharing.cancel()
        with suppress(asyncio.CancelledError):
            await sharing
        await shared.close()
    return Round(used / _CALLS * 1e6)


async def _calls(serve: Serve, polls: list[Context], count: int) -> None:
    for start in range(0, count, _AT_ONCE):
        await asyncio.gather(*(serve(None, polls[number % _USERS]) for number in range(start, start + _AT_ONCE)))


def _handler(authenticator: Authenticator, limits: CallLimits) -> Serve:
    async def wait(_request: Message, _call: Call) -> Message:
        return _ANSWER

    admission = Admission(1_000, lambda: 0.0, lambda: 1.0, random.random, lambda _rank: None)
    pipeline = HandlerPipeline(authenticator, Metrics().rpc, _CLOCK, admission)
    pipeline.limits = limits
    method, policy = _SERVICE.methods_by_name["GetHint"], access_policies(_SERVICE)["GetHint"]
    handler: Any = pipeline.handler(method, policy, wait, lambda _request, _call: _ANSWER.SerializeToString())
    return cast(Serve, handler.stream_unary)
