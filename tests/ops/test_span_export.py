"""Spans are exported in bounded batches; those that are dropped are counted, and no collector is waited for."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence

import pytest
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Sampler

from syncbeat_server.app.operations.tracing import running_tracer
from syncbeat_server.ops.metrics import Metrics
from syncbeat_server.ops.shutdown_budget import ShutdownBudget
from syncbeat_server.ops.tracing.otlp import MOST_LINKS, OtlpTracer
from syncbeat_server.ops.tracing.spans import SpanKind, active, current_traceparent, recorded_span, trace_headers
from syncbeat_server.ops.tracing.trace_context import parse_traceparent
from syncbeat_server.storage.batcher import Batcher
from tests.support.fake_clock import wait_until
from tests.support.otlp import Collector, collecting, exports_are_over
from tests.support.ports import free_port

pytestmark = pytest.mark.http

SAMPLED = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
LEFT_OUT = SAMPLED[:-1] + "0"


class Dropped:
    def __init__(self) -> None:
        self.counts = Counter[str]()

    def __call__(self, cause: str, count: int) -> None:
        self.counts[cause] += count


def tracer_to(
    url: str, monkeypatch: pytest.MonkeyPatch, dropped: Dropped, sampler: Sampler | None = None
) -> OtlpTracer:
    """A tracer that exports to this address as soon as it can."""
    for name, text in Collector(url).variables().items():
        monkeypatch.setenv(name, text)
    return OtlpTracer("1.0", dropped, sampler)


async def test_spans_reach_the_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    dropped = Dropped()
    async with collecting() as collector:
        tracer = tracer_to(collector.url, monkeypatch, dropped)
        with active(
            tracer.start("a call", SpanKind.SERVER, {"x": 1}, parent=parse_traceparent(SAMPLED, "v=1"))
        ) as span:
            assert trace_headers() == {"traceparent": current_traceparent(), "tracestate": "v=1"}
            span.child("a statement", SpanKind.CLIENT, {}).end()
        assert current_traceparent() == ""
        assert trace_headers() == {}
        done = tracer.close()
        await wait_until(done.done)
        (call,), (statement,) = collector.named("a call"), collector.named("a statement")
    assert call.service == "syncbeat"
    assert call.attributes == {"x": 1}
    assert (*call.ids[:1], call.parent) == tuple(SAMPLED.split("-")[1:3])
    assert (statement.ids[0], statement.parent) == call.ids
    assert not dropped.counts


async def test_spans_that_no_collector_takes_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    dropped = Dropped()
    tracer = tracer_to(f"http://127.0.0.1:{free_port()}", monkeypatch, dropped)
    tracer.start("a call", SpanKind.SERVER, {}).end()
    await wait_until(lambda: dropped.counts["export_failed"] == 1)
    tracer.close()
    await exports_are_over()


async def test_spans_above_the_queue_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "8")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "8")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    dropped = Dropped()
    tracer = tracer_to(f"http://127.0.0.1:{free_port()}", monkeypatch, dropped)
    for _ in range(100):
        tracer.start("a call", SpanKind.SERVER, {}).end()
    assert 100 - 2 * 8 <= dropped.counts["queue_full"] < 100
    tracer.close()
    await exports_are_over()


async def test_stop_is_not_held_up_by_a_collector_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    hangs = asyncio.Event()

    async def say_nothing(_reader: object, writer: asyncio.StreamWriter) -> None:
        await hangs.wait()
        writer.close()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    for name, text in Collector(f"http://{host}:{port}").variables().items():
        monkeypatch.setenv(name, text)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "6")
    try:
        async with asyncio.timeout(4):  # below both the exporter's timeout and the drain
            async with running_tracer(Metrics(), ShutdownBudget(20.0)) as tracer:
                assert tracer is not None
                tracer.start("a call", SpanKind.SERVER, {}).end()
    finally:
        hangs.set()
        server.close()
    await exports_are_over()


@pytest.mark.parametrize(("sampler", "link", "recorded"), [(ALWAYS_OFF, SAMPLED, True), (ALWAYS_ON, LEFT_OUT, False)])
async def test_work_behind_the_queue_is_sampled_as_its_call(
    monkeypatch: pytest.MonkeyPatch, sampler: Sampler, link: str, recorded: bool
) -> None:
    tracer = tracer_to(f"http://127.0.0.1:{free_port()}", monkeypatch, Dropped(), sampler)
    assert tracer.start("attempt", SpanKind.CONSUMER, {}, links=[link]).is_recorded is recorded
    assert tracer.start("attempt", SpanKind.CONSUMER, {}).is_recorded is (sampler is ALWAYS_ON)
    # A link that nobody can read decides nothing.
    assert tracer.start("attempt", SpanKind.CONSUMER, {}, links=["x"]).is_recorded is (sampler is ALWAYS_ON)


async def test_span_that_is_left_out_passes_its_context_on(monkeypatch: pytest.MonkeyPatch) -> None:
    tracer = tracer_to(f"http://127.0.0.1:{free_port()}", monkeypatch, Dropped(), ALWAYS_OFF)
    with active(tracer.start("a call", SpanKind.SERVER, {})):
        assert recorded_span() is None
        assert not int(current_traceparent()[-2:], 16) & 1


@pytest.mark.parametrize("sampled", [True, False])
async def test_batch_is_a_trace_of_its_own_that_is_linked_to_all_of_its_calls(
    monkeypatch: pytest.MonkeyPatch, sampled: bool
) -> None:
    """The first call of the batch is left out: whether one sees the transaction must not hang on who came first."""

    async def write(items: Sequence[int]) -> Sequence[int]:
        assert parse_traceparent(current_traceparent()) is not None
        return items

    async with collecting() as collector:
        tracer = tracer_to(collector.url, monkeypatch, Dropped())
        batcher = Batcher(write)

        async def call(number: int, traceparent: str) -> str:
            with active(tracer.start("a call", SpanKind.SERVER, {}, parent=parse_traceparent(traceparent))):
                await batcher.submit(number)
                return current_traceparent()

        last = SAMPLED if sampled else LEFT_OUT
        # More than a span may be linked to, of which the sampled one is the last.
        traces = [LEFT_OUT] * (MOST_LINKS + 1) + [last]
        calls = await asyncio.gather(*(call(number, each) for number, each in enumerate(traces)))
        await batcher.drain()
        done = tracer.close()
        await wait_until(done.done)
        batches = [span for span in collector.spans if span.name.startswith("batch ")]
    if not sampled:
        assert not batches
        return
    (batch,) = batches
    assert (batch.parent, batch.attributes["syncbeat.batch.size"]) == ("", len(traces))
    assert batch.ids[0] != SAMPLED.split("-")[1]
    assert len(batch.links) == MOST_LINKS
    (seen,) = collector.named("a call")
    assert seen.ids == batch.links[0] == tuple(calls[-1].split("-")[1:3])
    assert seen.links == [batch.ids]


async def test_batch_of_one_call_is_work_of_its_span(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    async def write(items: Sequence[int]) -> Sequence[int]:
        seen.append(current_traceparent())
        return items

    tracer = tracer_to(f"http://127.0.0.1:{free_port()}", monkeypatch, Dropped())
    batcher = Batcher(write)
    with active(tracer.start("a call", SpanKind.SERVER, {})) as span:
        await asyncio.gather(*(batcher.submit(number) for number in range(3)))
        await batcher.drain()
    assert seen == [span.context.traceparent], "which needs no span of a batch"
    tracer.close()
    await exports_are_over()


async def test_detached_span_begins_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    tracer = tracer_to(f"http://127.0.0.1:{free_port()}", monkeypatch, Dropped(), ALWAYS_OFF)
    call = tracer.start("a call", SpanKind.SERVER, {})
    assert not call.is_recorded
    other = call.detached("settle", SpanKind.CLIENT, {}, [SAMPLED])
    assert other.is_recorded
    assert other.context.trace_id != call.context.trace_id
    assert not call.detached("settle", SpanKind.CLIENT, {}, [LEFT_OUT]).is_recorded
    tracer.close()
    await exports_are_over()
