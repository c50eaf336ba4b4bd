"""Trace contexts of callers: taken over by the rules of W3C, or ignored."""

from __future__ import annotations

import re

import pytest

from syncbeat_server.ops.tracing.trace_context import MOST_TRACESTATE_OCTETS, from_metadata, parse_traceparent
from syncbeat_server.ops.tracing.variables import exports_traces, trace_faults

pytestmark = pytest.mark.unit

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"
ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}


@pytest.mark.parametrize("text", [PARENT, f"00-{TRACE}-{SPAN}-00"])
def test_traceparent_is_read_and_written_alike(text: str) -> None:
    context = parse_traceparent(text)
    assert context is not None
    assert context.traceparent == text


def test_traceparent_of_a_later_version_is_read_as_far_as_it_is_known() -> None:
    context = parse_traceparent(f"cc-{TRACE}-{SPAN}-ff-what-the-future-will-be-like")
    assert context is not None
    assert context.traceparent == f"00-{TRACE}-{SPAN}-03"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "00",
        PARENT.upper(),
        f"ff-{TRACE}-{SPAN}-01",
        f"{PARENT}-more",
        f"{PARENT}\n",
        f" {PARENT}",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[1:]}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-1",
        f"cc-{TRACE}-{SPAN}-01-{'x' * 300}",
    ],
)
def test_malformed_traceparent_is_ignored(text: str) -> None:
    assert parse_traceparent(text) is None


def test_trace_context_of_a_call() -> None:
    context = from_metadata(
        [("authorization", "x"), ("traceparent", PARENT), ("tracestate", "a=1"), ("tracestate", "b=2")]
    )
    assert context is not None
    assert (context.traceparent, context.tracestate) == (PARENT, "a=1,b=2")


def test_two_traceparents_are_none() -> None:
    assert from_metadata([("traceparent", PARENT), ("traceparent", PARENT)]) is None
    assert from_metadata([("traceparent-bin", b"x")]) is None


def test_long_tracestate_is_left_out() -> None:
    context = from_metadata([("traceparent", PARENT), ("tracestate", "a=" + "x" * MOST_TRACESTATE_OCTETS)])
    assert context is not None
    assert context.tracestate == ""


@pytest.mark.parametrize(
    ("variables", "exports"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        (ENDPOINT, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://collector/v1/traces"}, True),
        (ENDPOINT | {"OTEL_SDK_DISABLED": "TRUE"}, False),
        (ENDPOINT | {"OTEL_TRACES_EXPORTER": "none"}, False),
    ],
)
def test_traces_are_exported_by_the_standard_variables(variables: dict[str, str], exports: bool) -> None:
    assert exports_traces(variables) is exports
    assert trace_faults(variables) == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc"),
        ("OTEL_TRACES_EXPORTER", "zipkin"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "127.0.0.1:4317"),
    ],
)
def test_variables_that_cannot_be_used_are_named(name: str, text: str) -> None:
    (fault,) = trace_faults(ENDPOINT | {name: text})
    assert fault.startswith(name)


def test_refusal_of_the_protocol_grpc_names_a_way_out_that_is_one() -> None:
    grpc = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
    (fault,) = trace_faults(grpc)
    named = dict(re.findall(r"(OTEL_\w+)=(\S+[^\s,])", fault))
    assert named.keys() == {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"}
    # Both are of traces alone, so that what else reads the others goes on as it is.
    assert exports_traces(grpc | named)
    assert trace_faults(grpc | named) == []
