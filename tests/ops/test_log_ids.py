"""Lines of the log name the trace and the call that they belong to."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from syncbeat_server.ops.logs import configure_logging, request_id
from syncbeat_server.ops.tracing.otlp import OtlpTracer
from syncbeat_server.ops.tracing.spans import SpanKind, active

pytestmark = pytest.mark.unit

_log = logging.getLogger("syncbeat_server.test")


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Iterator[pytest.CaptureFixture[str]]:
    """The log as JSON, on the standard error that `capsys` reads."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    configure_logging(as_json=True, level="INFO")
    yield capsys
    root.handlers[:] = handlers
    root.setLevel(level)


def test_line_of_a_traced_call_has_its_ids(lines: pytest.CaptureFixture[str]) -> None:
    tracer = OtlpTracer("1.0", lambda _cause, _count: None, ALWAYS_ON)
    token = request_id.set("r-1")
    with active(tracer.start("GetHint", SpanKind.SERVER, {})) as span:
        _log.info("inside")
    request_id.reset(token)
    _log.info("outside")
    inside, outside = map(json.loads, lines.readouterr().err.splitlines())
    assert inside["request_id"] == "r-1"
    assert (inside["trace_id"], inside["span_id"]) == tuple(span.context.traceparent.split("-")[1:3])
    assert not {"request_id", "trace_id", "span_id"} & outside.keys()
