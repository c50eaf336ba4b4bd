"""CPU that traces add to a GetHint in microseconds: of a process that exports none, and of one that does."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from statistics import median
from typing import Any, cast

from google.protobuf.message import Message
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Sampler

from bench.call_stand_ins import AllAccepted, CallContext
from bench.figure import Better, Figure, Options, Round, measure_pairs
from syncbeat.v1 import sync_service_pb2 as pb
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
from syncbeat_server.ops.tracing.otlp import OtlpTracer
from syncbeat_server.rpc.pipeline.access import access_policies
from syncbeat_server.rpc.pipeline.call_context import Call
from syncbeat_server.rpc.pipeline.call_lifecycle import Context
from syncbeat_server.rpc.pipeline.handler_pipeline import HandlerPipeline
from syncbeat_server.rpc.pipeline.load_shedding import Admission

_CALLS, _AT_ONCE = 8_192, 32
_KEY = KeyRow(Issuer("default", "https://issuer.example", uuid_subjects=False), "k", "HS256", "k" * 32)
_TOKEN = mint(_KEY, "user", datetime.now(UTC), timedelta(hours=1))
_SERVICE = pb.DESCRIPTOR.services_by_name["SyncService"]
_ANSWER = pb.GetHintResponse()
_CLOCK = SystemClock()

Serve = Callable[[object, Context], Awaitable[bytes]]


class _BarePipeline(HandlerPipeline):
    """Makes the handlers that there would be without traces."""

    def _traced(self, _method: object, serve: Any) -> Any:
        return serve


def measure(options: Options) -> Figure:
    """Measure the path without a tracer against the one that knows none; and with one, sampled and not."""

    def against_bare(pipeline: type[HandlerPipeline], sampler: Sampler | None) -> Figure:
        return measure_pairs(
            "trace_off_us",
            "us of CPU",
            Better.LESS,
            options,
            lambda: asyncio.run(_measure(pipeline, sampler)),
            lambda: asyncio.run(_measure(_BarePipeline, None)),
        )

    off = against_bare(HandlerPipeline, None)
    notes = {
        "call_us": round(off.value, 2),
        "unsampled_us": round(_added(against_bare(HandlerPipeline, ALWAYS_OFF)), 2),
        "sampled_us": round(_added(against_bare(HandlerPipeline, ALWAYS_ON)), 2),
        "baseline_is": "the same path by handlers that know of no traces",
    }
    return replace(off, value=_added(off), notes=notes)


def _added(figure: Figure) -> float:
    return median(ours - baseline for ours, baseline in figure.runs)


async def _measure(pipeline: type[HandlerPipeline], sampler: Sampler | None) -> Round:
    caches = CallerCaches(cast(AccountStatusCache, AllAccepted()), TokenCache(_CLOCK, 2))
    authenticator = Authenticator(Credentials(key_table([_KEY]), {}, {}, {}), caches, _CLOCK)
    await authenticator.authenticate(parse_bearer([f"Bearer {_TOKEN}"]))
    call = cast(Context, CallContext(_TOKEN, pb.GetHintRequest(device_id="phone").SerializeToString()))
    tracer = None if sampler is None else OtlpTracer("bench", lambda _cause, _count: None, sampler)
    serve = _handler(pipeline, authenticator, tracer)
    await _calls(serve, call, _CALLS // 4)
    start = time.thread_time()
    await _calls(serve, call, _CALLS)
    used = time.thread_time() - start
    if tracer is not None:
        tracer.close()
    return Round(used / _CALLS * 1e6)


async def _calls(serve: Serve, call: Context, count: int) -> None:
    for _ in range(0, count, _AT_ONCE):
        await asyncio.gather(*(serve(None, call) for _ in range(_AT_ONCE)))


def _handler(pipeline: type[HandlerPipeline], authenticator: Authenticator, tracer: OtlpTracer | None) -> Serve:
    async def wait(_request: Message, _call: Call) -> Message:
        return _ANSWER

    admission = Admission(1_000, lambda: 0.0, lambda: 1.0, random.random, lambda _rank: None)
    made = pipeline(authenticator, Metrics().rpc, _CLOCK, admission)
    made.tracer = tracer
    method, policy = _SERVICE.methods_by_name["GetHint"], access_policies(_SERVICE)["GetHint"]
    handler: Any = made.handler(method, policy, wait, lambda _request, _call: _ANSWER.SerializeToString())
    return cast(Serve, handler.stream_unary)
