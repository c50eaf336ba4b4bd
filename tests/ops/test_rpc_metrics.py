"""Metrics of RPCs by the names and labels of go-grpc-middleware, with traces as exemplars."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.exposition import generate_latest

from syncbeat_server.ops.metrics.rpc import RpcMetrics
from syncbeat_server.ops.tracing.spans import SpanKind, active
from tests.support.otlp import idle_tracer

pytestmark = pytest.mark.unit

LABELS = 'grpc_method="GetHint",grpc_service="syncbeat.v1.SyncService",grpc_type="unary"'


def exposed(registry: CollectorRegistry) -> list[str]:
    text: bytes = generate_latest(registry)  # type: ignore[no-untyped-call]  # the library has no types here
    lines: list[str] = text.decode().splitlines()
    return lines


def test_names_and_labels_are_those_of_the_convention() -> None:
    registry = CollectorRegistry()
    calls = RpcMetrics(registry).calls("syncbeat.v1.SyncService", "GetHint")
    calls.started += 2
    calls.count("OK", 0.003)
    lines = exposed(registry)
    assert f"grpc_server_started_total{{{LABELS}}} 2.0" in lines
    assert f'grpc_server_handled_total{{grpc_code="OK",{LABELS}}} 1.0' in lines
    assert f'grpc_server_handling_seconds_bucket{{{LABELS},le="0.005"}} 1.0' in lines


def test_method_that_was_never_called_has_no_series() -> None:
    registry = CollectorRegistry()
    RpcMetrics(registry).calls("syncbeat.v1.SyncService", "GetHint")
    assert not any("GetHint" in line for line in exposed(registry))


def test_bucket_has_the_trace_of_a_sampled_call(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = CollectorRegistry()
    calls = RpcMetrics(registry).calls("syncbeat.v1.SyncService", "GetHint")
    tracer = idle_tracer(monkeypatch)
    with active(tracer.start("GetHint", SpanKind.SERVER, {})) as span:
        calls.count_traced("OK", 0.003)
    calls.count_traced("OK", 0.3)
    buckets = [line for line in exposed(registry) if "# {" in line]
    assert len(buckets) == 1
    assert f'le="0.005"}} 1.0 # {{trace_id="{span.context.trace_id:032x}"}} 0.003' in buckets[0]
