"""Lines of the log name the trace and the call that they belong to."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from syncbeat_server.ops.logs import configure_logging, request_id
from syncbeat_server.ops.tracing.spans import SpanKind, active
from tests.support.otlp import idle_tracer

pytestmark = pytest.mark.unit

_log = logging.getLogger("syncbeat_server.test")


@contextmanager
def logged(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """Take the log as JSON for the block."""
    root, text = logging.getLogger(), io.StringIO()
    handlers, level = root.handlers[:], root.level
    monkeypatch.setattr("sys.stderr", text)
    configure_logging(as_json=True, level="INFO")
    try:
        yield text
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def test_line_of_a_traced_call_has_its_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    tracer = idle_tracer(monkeypatch)
    with logged(monkeypatch) as text:
        token = request_id.set("r-1")
        with active(tracer.start("GetHint", SpanKind.SERVER, {})) as span:
            _log.info("inside")
        request_id.reset(token)
        _log.info("outside")
    inside, outside = map(json.loads, text.getvalue().splitlines())
    assert inside["request_id"] == "r-1"
    assert (inside["trace_id"], inside["span_id"]) == tuple(span.context.traceparent.split("-")[1:3])
    assert not {"request_id", "trace_id", "span_id"} & outside.keys()


def test_repeats_of_a_cause_are_counted_over_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    tracer = idle_tracer(monkeypatch)
    with logged(monkeypatch) as text:
        for _ in range(50):
            with active(tracer.start("GetHint", SpanKind.SERVER, {})):
                _log.warning("dependency down")
    (line,) = text.getvalue().splitlines()
    assert json.loads(line)["trace_id"]
