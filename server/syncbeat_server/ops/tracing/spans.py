"""Knows the span of the work at hand, without loading OpenTelemetry: where nothing is exported there is none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from enum import Enum
from typing import Protocol

from syncbeat_server.ops.tracing.trace_context import TraceContext

Attributes = Mapping[str, str | int | bool]


class SpanKind(Enum):
    """The kinds of the specification, by their names in OpenTelemetry's API."""

    SERVER = "SERVER"
    CLIENT = "CLIENT"
    CONSUMER = "CONSUMER"
    INTERNAL = "INTERNAL"


class Span(Protocol):
    """A span that was started. A Protocol, since its implementation loads OpenTelemetry."""

    @property
    def context(self) -> TraceContext:
        """Its ids."""

    @property
    def is_recorded(self) -> bool:
        """False if the sampler left it out: then it only passes its context on."""

    def set(self, key: str, value: str | int | bool) -> None:
        """Set an attribute."""

    def link(self, traceparent: str) -> None:
        """Link the span of this traceparent; a malformed one, and '', is ignored."""

    def fail(self, error_type: str) -> None:
        """Give it the status ERROR, with a low-cardinality `error.type`."""

    def end(self) -> None:
        """End it. Never blocks: it is queued for export."""

    def child(self, name: str, kind: SpanKind, attributes: Attributes) -> Span:
        """Start a span below it."""

    def detached(self, name: str, kind: SpanKind, attributes: Attributes, links: Sequence[str]) -> Span:
        """Start a trace that is linked to traceparents: for what is not its work alone, or not of its time."""


class Tracer(Protocol):
    """Starts spans that have no parent in this process."""

    def start(
        self,
        name: str,
        kind: SpanKind,
        attributes: Attributes,
        *,
        parent: TraceContext | None = None,
        links: Sequence[str] = (),
        since: datetime | None = None,
    ) -> Span:
        """Start a span below a caller's or, without `parent`, a trace; linked to traceparents; `since` a time before
        now."""


current_span: ContextVar[Span | None] = ContextVar("current_span", default=None)
"""The span of the work at hand; None in a process without a tracer, and for work that belongs to no call."""


def recorded_span() -> Span | None:
    """Return the span of the work at hand if there is one that is exported."""
    span = current_span.get()
    return span if span is not None and span.is_recorded else None


def current_traceparent() -> str:
    """Return the traceparent of the work at hand; '' if it has no span."""
    span = current_span.get()
    return "" if span is None else span.context.traceparent


def trace_headers() -> dict[str, str]:
    """Return the headers by which a request made now goes on with the trace; none if there is no span."""
    span = current_span.get()
    if span is None:
        return {}
    context = span.context
    state = {"tracestate": context.tracestate} if context.tracestate else {}
    return {"traceparent": context.traceparent, **state}


@contextmanager
def active(span: Span) -> Iterator[Span]:
    """Make `span` that of the work at hand for the block, and end it; an exception fails it by its class."""
    token = current_span.set(span)
    try:
        yield span
    except BaseException as error:
        span.fail(type(error).__name__)
        raise
    finally:
        current_span.reset(token)
        span.end()
