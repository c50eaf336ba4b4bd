"""Metrics of the stores: health of Redis, deleted rows, clock skew."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


class RedisFigures(Protocol):
    """Health of Redis, and its failed calls so far by cause."""

    errors: dict[Any, int]

    @property
    def is_up(self) -> bool:
        """Return True while everything tried last has worked."""
        ...


class _RedisCollector(Collector):
    def __init__(self, figures: RedisFigures) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        up = "1 while Redis does all that is asked of it; nothing is lost while it does not"
        errors = CounterMetricFamily("syncbeat_redis_errors", "Calls of Redis that failed, by cause", labels=("cause",))
        for cause, count in self._figures.errors.items():
            errors.add_metric((cause,), count)
        yield from (GaugeMetricFamily("syncbeat_redis_up", up, self._figures.is_up), errors)


class StorageMetrics:
    """Metrics of the stores, as one process sees them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._forgotten = Counter(
            "syncbeat_rows_forgotten", "Old rows deleted, by what they are", ("rows",), registry=registry
        )
        self._skew = Gauge(
            "syncbeat_clock_skew_seconds",
            "By how much this machine's clock is ahead of the database's",
            registry=registry,
        )

    def watch_redis(self, figures: RedisFigures) -> None:
        """Expose the health of Redis, read at each scrape."""
        self._registry.register(_RedisCollector(figures))

    def clock_skew(self, ahead_s: float) -> None:
        """Set by how many seconds this machine's clock is ahead of the database's."""
        self._skew.set(ahead_s)

    def rows_deleted(self, kind: str, count: int) -> None:
        """Count old rows that were deleted, by their kind."""
        self._forgotten.labels(kind).inc(count)
