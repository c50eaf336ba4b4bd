"""Puts the span of a call around its handler, by the semantic conventions 1.45 for RPC (gRPC, server).

https://github.com/open-telemetry/semantic-conventions/blob/v1.45.0/docs/rpc/grpc.md. Around and not inside: the
handlers of a process that exports nothing are what they would be without this module (ADR 176).
"""

from __future__ import annotations

from asyncio import Future
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from functools import partial
from typing import TypeVar

import grpc
from google.protobuf.descriptor import MethodDescriptor

from syncbeat_server.ops.tracing.spans import SpanKind, Tracer, current_span
from syncbeat_server.ops.tracing.trace_context import from_metadata
from syncbeat_server.rpc.fastpath.received_metadata import metadata_of
from syncbeat_server.rpc.pipeline.call_lifecycle import Context

Answer = TypeVar("Answer")
Handler = Callable[[object, Context], Awaitable[Answer]]
InBatch = Callable[[Callable[[], Answer]], "Future[Answer]"]

# By number too, which `ServicerContext.code` returns, whatever its type says; without OK, which is no failure's code.
_NAMES: dict[object, str] = {
    key: code.name for code in grpc.StatusCode if code is not grpc.StatusCode.OK for key in (code, code.value[0])
}
_SERVER_FAULTS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})
"""The codes that are errors of a server's span; of the others the caller is the cause."""


def traced(serve: Handler[Answer], tracer: Tracer, method: MethodDescriptor, *, below_callers: bool) -> Handler[Answer]:
    """Return the handler with a span around each call.

    `below_callers` puts it below the span whose trace context the caller sent, if it did. The sampler then goes by
    what an unauthenticated caller says, so that each call of a flood may be recorded.
    """
    name = f"{method.containing_service.full_name}/{method.name}"
    attributes = {"rpc.system.name": "grpc", "rpc.method": name}

    async def serve_traced(requests: object, context: Context) -> Answer:
        parent = from_metadata(metadata_of(context)) if below_callers else None
        span = tracer.start(name, SpanKind.SERVER, attributes, parent=parent)
        current_span.set(span)  # its task is the call's own
        code = "OK"
        try:
            return await serve(requests, context)
        except BaseException:
            code = _NAMES.get(context.code(), "CANCELLED")
            raise
        finally:
            span.set("rpc.response.status_code", code)
            if code in _SERVER_FAULTS:
                span.fail(code)
            span.end()

    return serve_traced


def in_own_context(in_batch: InBatch[Answer]) -> InBatch[Answer]:
    """Return what runs each work of a batch in its call's context, so that its span is the one of the work."""

    def serve(work: Callable[[], Answer]) -> Future[Answer]:
        return in_batch(partial(copy_context().run, work))

    return serve
