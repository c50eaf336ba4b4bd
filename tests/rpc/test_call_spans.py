"""Spans of calls: named by the conventions, with the status as it was answered, below the caller's."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import pytest

from syncbeat.v1 import core_pb2, directory_service_pb2, sync_service_pb2
from tests.support.databases import DatabaseUrls
from tests.support.fake_clock import wait_until
from tests.support.otlp import Collector, ReceivedSpan, collecting
from tests.support.rpc_server import Caller, Server, running_server

pytestmark = pytest.mark.rpc

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
HINT = "syncbeat.v1.SyncService/GetHint"


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    async with collecting() as running:
        yield running


@pytest.fixture
async def traced(
    database_urls: DatabaseUrls, redis_url: str, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Server]:
    for name, text in collector.variables().items():
        monkeypatch.setenv(name, text)
    async with running_server(database_urls, redis_url, TRACE_CALLERS="true") as server:
        yield server


async def spans(collector: Collector, name: str, count: int = 1) -> list[ReceivedSpan]:
    await wait_until(lambda: len(collector.named(name)) >= count)
    return collector.named(name)


def below(caller: Caller, traceparent: str) -> Caller:
    """The same caller, in a trace of its own."""
    return Caller(caller.channel, (*caller.metadata, ("traceparent", traceparent)))


async def test_polls_of_one_batch_are_spans_of_their_callers(traced: Server, collector: Collector) -> None:
    await traced.register("ann", "phone")
    ann = traced.user("ann")
    await ann(sync_service_pb2.GetHintRequest(device_id="phone"))  # from here on it is answered from memory
    for number in range(1, 9):
        caller = below(ann, f"00-{number:032x}-{SPAN}-01")
        await caller(sync_service_pb2.GetHintRequest(device_id="phone"))
    polls = await spans(collector, HINT, 9)
    assert {span.ids[0] for span in polls} >= {f"{number:032x}" for number in range(1, 9)}
    assert all(span.attributes["rpc.response.status_code"] == "OK" for span in polls)
    assert polls[0].attributes["rpc.system.name"] == "grpc"


async def test_status_of_a_refused_call_is_in_its_span(traced: Server, collector: Collector) -> None:
    with pytest.raises(grpc.aio.AioRpcError):
        await traced.bearer("wrong")(sync_service_pb2.GetHintRequest(device_id="phone"))
    (span,) = await spans(collector, HINT)
    assert span.attributes["rpc.response.status_code"] == "UNAUTHENTICATED"
    assert span.sent.status.code == 0, "the caller is at fault, and not this server"


async def test_malformed_trace_context_is_ignored(traced: Server, collector: Collector) -> None:
    caller = below(traced.backend, f"00-{TRACE}-{'0' * 16}-01")
    await caller(
        directory_service_pb2.RegisterDeviceRequest(
            user_id="u", device_id="d", platform=directory_service_pb2.PLATFORM_ANDROID
        )
    )
    (span,) = await spans(collector, "syncbeat.v1.DirectoryService/RegisterDevice")
    assert (span.ids[0] != TRACE, span.parent) == (True, "")


async def test_trace_context_of_callers_is_ignored_by_default(
    database_urls: DatabaseUrls, redis_url: str, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in collector.variables().items():
        monkeypatch.setenv(name, text)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    async with running_server(database_urls, redis_url) as server:
        with pytest.raises(grpc.aio.AioRpcError):  # it is sampled by what it says, and nobody knows who it is
            await below(server.bearer("wrong"), f"00-{TRACE}-{SPAN}-01")(sync_service_pb2.GetHintRequest())
    assert not collector.spans, "a server that stops exports what it has"


async def test_statements_are_below_their_call(traced: Server, collector: Collector) -> None:
    caller = below(traced.backend, f"00-{TRACE}-{SPAN}-01")
    change = core_pb2.NewChange(scope="s", key="k", merge_patch_json="1")
    await caller(sync_service_pb2.PublishChangesRequest(changes=[change]))
    (call,) = await spans(collector, "syncbeat.v1.SyncService/PublishChanges")
    statements = [span for span in collector.spans if "db.system.name" in span.attributes]
    assert statements
    assert {(span.ids[0], span.parent) for span in statements} == {call.ids}
