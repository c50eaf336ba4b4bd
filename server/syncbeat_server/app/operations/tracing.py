"""Wires the traces of a process: by OpenTelemetry's own variables, and not at all without an endpoint."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from syncbeat_server import __version__
from syncbeat_server.errors import ConfigurationError
from syncbeat_server.ops.metrics import Metrics
from syncbeat_server.ops.shutdown_budget import ShutdownBudget
from syncbeat_server.ops.tracing.spans import Tracer
from syncbeat_server.ops.tracing.variables import exports_traces, trace_faults

_log = logging.getLogger(__name__)

_EXPORT_S = 0.3  # of the second and a half that is left after draining
_MOST_EXPORT_S = 1.0  # whatever is left of draining: a collector that is away delays no stop by more


def require_trace_variables(environment: Mapping[str, str] | None = None) -> None:
    """Raise ConfigurationError if the variables of traces cannot be used."""
    faults = trace_faults(os.environ if environment is None else environment)
    if faults:
        raise ConfigurationError("\n".join(faults))


@asynccontextmanager
async def running_tracer(metrics: Metrics, shutdown: ShutdownBudget) -> AsyncIterator[Tracer | None]:
    """Yield what starts spans, None if no endpoint is set; at the end export what is queued, within a second.

    Raises:
        ConfigurationError: a variable cannot be used.
    """
    require_trace_variables()
    if not exports_traces(os.environ):
        yield None
        return
    from syncbeat_server.ops.tracing.otlp import OtlpTracer  # the SDK is large

    try:
        tracer = OtlpTracer(__version__, metrics.traces.dropped)
    except ValueError as error:
        raise ConfigurationError(f"OTEL_BSP_*, OTEL_SPAN_*: {error}") from error
    try:
        yield tracer
    finally:
        closing = asyncio.wrap_future(tracer.close())
        await asyncio.wait([closing], timeout=min(shutdown.remaining_s() + _EXPORT_S, _MOST_EXPORT_S))
        if not closing.done():
            closing.cancel()
            _log.warning("spans not exported in time")
