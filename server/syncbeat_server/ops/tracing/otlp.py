"""Sets up OpenTelemetry's SDK by the standard variables: sampler, bounded batches, OTLP over HTTP.

Loaded only by a process that exports: it takes 0.2 s and 6 MiB. No span blocks the event loop: a thread exports what is
queued, and what the queue has no room for, or no collector takes, is counted and dropped.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from datetime import datetime
from os import environ

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.environment_variables import OTEL_BSP_MAX_QUEUE_SIZE, OTEL_RESOURCE_ATTRIBUTES, OTEL_SERVICE_NAME
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import Sampler
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, Status, StatusCode, TraceFlags, TraceState

from syncbeat_server.ops.tracing.linked_sampler import LinkedSampler
from syncbeat_server.ops.tracing.spans import Attributes, Span, SpanKind
from syncbeat_server.ops.tracing.trace_context import TraceContext, parse_traceparent

Dropped = Callable[[str, int], None]
"""Counts spans that were dropped, by cause: `queue_full` or `export_failed`."""

EXPORT_THREAD = "export of spans"
"""Names the thread that exports what is queued at the end."""
_SERVICE = "syncbeat"
_MOST_QUEUED = 2_048  # the default of the specification
_KINDS = {kind: trace.SpanKind[kind.value] for kind in SpanKind}


class OtlpTracer:
    """Starts spans and exports them."""

    def __init__(self, version: str, dropped: Dropped, sampler: Sampler | None = None) -> None:
        """Read the variables, and start the thread that exports; None: the sampler that they name.

        Raises:
            ValueError: a variable makes no sense.
        """
        queue = _CountedQueue(OTLPSpanExporter(), dropped)
        # No hook at the end of the process: it would wait there for a collector that is away.
        self._provider = TracerProvider(
            sampler=sampler,
            resource=_resource(version),
            shutdown_on_exit=False,
            span_limits=SpanLimits(max_links=MOST_LINKS),
        )
        self._provider.sampler = LinkedSampler(self._provider.sampler)
        self._provider.add_span_processor(queue)
        self._tracer = self._provider.get_tracer("syncbeat_server", version)

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
        """Start a span below a caller's or, without `parent`, a trace."""
        context = Context() if parent is None else _below(NonRecordingSpan(_span_context(parent)))
        start_ns = None if since is None else int(since.timestamp() * 1e9)
        return _OtlpSpan(
            self._tracer, self._tracer.start_span(name, context, _KINDS[kind], attributes, _links(links), start_ns)
        )

    def close(self) -> Future[object]:
        """Export what is queued, in a thread of its own that holds no process up; return what tells the end of it."""
        done: Future[object] = Future()
        done.set_running_or_notify_cancel()

        def shut_down() -> None:
            self._provider.shutdown()
            done.set_result(None)

        threading.Thread(target=shut_down, name=EXPORT_THREAD, daemon=True).start()
        return done


MOST_LINKS = 128
"""The spans that one is linked to, at most: the specification's default."""


class _OtlpSpan:
    """A span of the SDK as the rest of the service sees it."""

    __slots__ = ("_span", "_tracer")

    def __init__(self, tracer: trace.Tracer, span: trace.Span) -> None:
        self._tracer = tracer
        self._span = span

    @property
    def context(self) -> TraceContext:
        own = self._span.get_span_context()
        return TraceContext(own.trace_id, own.span_id, int(own.trace_flags), own.trace_state.to_header())

    @property
    def is_recorded(self) -> bool:
        return self._span.is_recording()

    def set(self, key: str, value: str | int | bool) -> None:
        self._span.set_attribute(key, value)

    def link(self, traceparent: str) -> None:
        for link in _links([traceparent]):
            self._span.add_link(link.context)

    def fail(self, error_type: str) -> None:
        self._span.set_attribute("error.type", error_type)
        self._span.set_status(Status(StatusCode.ERROR))

    def end(self) -> None:
        self._span.end()

    def child(self, name: str, kind: SpanKind, attributes: Attributes) -> Span:
        return _OtlpSpan(self._tracer, self._tracer.start_span(name, _below(self._span), _KINDS[kind], attributes))

    def detached(self, name: str, kind: SpanKind, attributes: Attributes, links: Sequence[str]) -> Span:
        return _OtlpSpan(
            self._tracer, self._tracer.start_span(name, Context(), _KINDS[kind], attributes, _links(links))
        )


class _CountedQueue(BatchSpanProcessor):
    """The SDK's bounded queue, which also counts what it drops."""

    def __init__(self, exporter: SpanExporter, dropped: Dropped) -> None:
        self._taken = _CountedExporter(exporter, dropped)
        self._dropped = dropped
        self._most = int(environ.get(OTEL_BSP_MAX_QUEUE_SIZE) or _MOST_QUEUED)
        self._queued = 0
        super().__init__(self._taken, max_queue_size=self._most)

    def on_end(self, span: ReadableSpan) -> None:
        """Queue a span, or count it as dropped; the event loop alone calls this."""
        if span.context is None or not span.context.trace_flags.sampled:
            return
        if self._queued - self._taken.count >= self._most:
            self._dropped("queue_full", 1)
            return
        self._queued += 1
        super().on_end(span)


class _CountedExporter(SpanExporter):
    """Counts the spans it was given, and those that no collector took."""

    def __init__(self, exporter: SpanExporter, dropped: Dropped) -> None:
        self.count = 0
        self._exporter = exporter
        self._dropped = dropped

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.count += len(spans)
        try:
            result = self._exporter.export(spans)
        except Exception:
            self._dropped("export_failed", len(spans))
            raise
        if result is not SpanExportResult.SUCCESS:
            self._dropped("export_failed", len(spans))
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()


def _resource(version: str) -> Resource:
    named = environ.get(OTEL_SERVICE_NAME) or "service.name=" in environ.get(OTEL_RESOURCE_ATTRIBUTES, "")
    return Resource.create({"service.version": version} | ({} if named else {SERVICE_NAME: _SERVICE}))


def _below(span: trace.Span) -> Context:
    return trace.set_span_in_context(span, Context())


def _span_context(of: TraceContext) -> SpanContext:
    state = TraceState.from_header([of.tracestate]) if of.tracestate else None
    return SpanContext(of.trace_id, of.span_id, is_remote=True, trace_flags=TraceFlags(of.flags), trace_state=state)


def _links(traceparents: Sequence[str]) -> list[Link]:
    """Return links to as many as one may have, those first that are sampled: by them the sampler decides."""
    read = (parse_traceparent(one) for one in dict.fromkeys(traceparents))
    found = [one for one in read if one is not None]
    found.sort(key=lambda one: not one.is_sampled)
    return [Link(_span_context(one)) for one in found[:MOST_LINKS]]
