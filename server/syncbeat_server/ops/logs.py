"""Configures structured logs: one line an event, with the ids of its call and trace; bounded by `log_rate_limit`."""

from __future__ import annotations

import logging
import sys
from contextvars import ContextVar

import structlog

from syncbeat_server.ops.log_rate_limit import RateLimitedHandler
from syncbeat_server.ops.tracing.spans import current_span

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)


def configure_logging(*, as_json: bool, level: str) -> None:
    """Send the log records of this process to standard error, in one format, with repeated faults counted."""
    handler = RateLimitedHandler(sys.stderr)
    handler.addFilter(_add_ids)
    handler.setFormatter(formatter(as_json=as_json))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)


def formatter(*, as_json: bool) -> logging.Formatter:
    """Return the formatter of the records of all loggers."""
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    before: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=before,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
    )


def _add_ids(record: logging.LogRecord) -> bool:
    # At the call that logs: summaries are written later, by a thread that belongs to no call.
    current = request_id.get()
    if current is not None:
        record.request_id = current
    span = current_span.get()
    if span is not None:
        context = span.context
        # As the OpenTelemetry specification names them where a log has no fields of its own for them
        # (https://opentelemetry.io/docs/specs/otel/compatibility/logging_trace_context/).
        record.trace_id = f"{context.trace_id:032x}"
        record.span_id = f"{context.span_id:016x}"
    return True
