"""Metrics of traces: the spans that nobody will see."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter


class TraceMetrics:
    """Metrics of the spans of one process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._dropped = Counter(
            "syncbeat_trace_spans_dropped",
            "Spans that were dropped: the queue was full, or the collector took none",
            ("cause",),
            registry=registry,
        )

    def dropped(self, cause: str, count: int) -> None:
        """Count dropped spans; safe to call from any thread."""
        self._dropped.labels(cause).inc(count)
