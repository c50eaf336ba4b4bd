"""Metrics of limits: calls refused, and the work of sharing rates."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


class LimitFigures(Protocol):
    """Figures of the rates that a process shares with others, since its start; `size`: buckets in memory."""

    is_shared: bool
    asked: int
    charged: int
    decided_locally: int

    @property
    def size(self) -> int:
        """Return the number of buckets in memory."""
        ...


class _LimitCollector(Collector):
    def __init__(self, figures: LimitFigures) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        figures = self._figures
        shared = "1 while rates are shared over Redis; else each process goes by its share of twice the rate"
        yield GaugeMetricFamily("syncbeat_limits_shared", shared, figures.is_shared)
        yield GaugeMetricFamily("syncbeat_limit_buckets", "Buckets of rates in memory", figures.size)
        asked = "Buckets of rates that Redis was asked about, by whether a call waited or it was told afterwards"
        counts = CounterMetricFamily("syncbeat_limit_asks", asked, labels=("kind",))
        counts.add_metric(("asked",), figures.asked)
        counts.add_metric(("told",), figures.charged)
        yield counts
        local = "Calls held against limits without Redis"
        yield CounterMetricFamily("syncbeat_limit_local_decisions", local, figures.decided_locally)


class LimitMetrics:
    """Metrics of limits, as one process sees them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._refused = Counter(
            "syncbeat_rate_limited",
            "Calls refused by a rate of the app's tiers, by what is limited",
            ("app", "subject", "method_class"),
            registry=registry,
        )

    def watch(self, figures: LimitFigures) -> None:
        """Expose the figures of shared rates, read at each scrape."""
        self._registry.register(_LimitCollector(figures))

    @property
    def refusals(self) -> int:
        """Return how many calls rates refused so far."""
        samples = (sample for metric in self._refused.collect() for sample in metric.samples)
        return int(sum(sample.value for sample in samples if sample.name.endswith("_total")))

    def refused(self, app_id: str, subject: str, method_class: str) -> None:
        """Count a call that a rate refused."""
        self._refused.labels(app_id, subject, method_class).inc()
