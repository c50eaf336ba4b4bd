"""Receives spans over OTLP (HTTP, protobuf) in the process of a test, as a collector does."""

from __future__ import annotations

import gzip
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SentSpan
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from syncbeat_server.ops.tracing.otlp import EXPORT_THREAD, OtlpTracer
from tests.support.fake_clock import wait_until
from tests.support.http_sites import sites


@dataclass(frozen=True)
class ReceivedSpan:
    """A span as it was exported."""

    service: str
    sent: SentSpan

    @property
    def name(self) -> str:
        return self.sent.name

    @property
    def ids(self) -> tuple[str, str]:
        """Return the ids of its trace and of itself."""
        return self.sent.trace_id.hex(), self.sent.span_id.hex()

    @property
    def parent(self) -> str:
        return self.sent.parent_span_id.hex()

    @property
    def links(self) -> list[tuple[str, str]]:
        return [(link.trace_id.hex(), link.span_id.hex()) for link in self.sent.links]

    @property
    def attributes(self) -> dict[str, str | int | bool]:
        values = {one.key: one.value for one in self.sent.attributes}
        return {key: getattr(value, value.WhichOneof("value") or "") for key, value in values.items()}


@dataclass
class Collector:
    """Keeps the spans that came so far."""

    url: str = ""
    spans: list[ReceivedSpan] = field(default_factory=list)

    def named(self, name: str) -> list[ReceivedSpan]:
        return [span for span in self.spans if span.name == name]

    async def take(self, request: web.Request) -> web.Response:
        body = await request.read()
        sent = ExportTraceServiceRequest.FromString(
            gzip.decompress(body) if request.headers.get("content-encoding") == "gzip" else body
        )
        for group in sent.resource_spans:
            service = {one.key: one.value.string_value for one in group.resource.attributes}["service.name"]
            self.spans += [ReceivedSpan(service, span) for scope in group.scope_spans for span in scope.spans]
        return web.Response(
            body=ExportTraceServiceResponse().SerializeToString(), content_type="application/x-protobuf"
        )

    def variables(self) -> dict[str, str]:
        """Variables by which a process exports to it at once."""
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": self.url, "OTEL_BSP_SCHEDULE_DELAY": "50"}


@asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    """Receive spans for the block."""
    collector = Collector()
    async with sites(web.post("/v1/traces", collector.take)) as address:
        collector.url = f"http://{address}"
        yield collector


def idle_tracer(monkeypatch: pytest.MonkeyPatch) -> OtlpTracer:
    """A tracer that samples all and exports nothing while the tests last.

    Its thread would draw random pauses in the middle of other tests, whose examples have to be the same each time.
    """
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "3600000")
    return OtlpTracer("1.0", lambda _cause, _count: None, ALWAYS_ON)


async def exports_are_over() -> None:
    """Wait for the threads that export at the end of a tracer, for the same reason."""
    await wait_until(lambda: not any(one.name == EXPORT_THREAD for one in threading.enumerate()))
