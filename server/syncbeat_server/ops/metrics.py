"""Every metric of the service, declared in one place. Names follow the gRPC Prometheus convention."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 1.0, 2.5, 5.0, 10.0)


class _CallCollector(Collector):
    """Finished RPCs. The library's own counters cost several times as much, on every call."""

    def __init__(self) -> None:
        self._handled: defaultdict[tuple[str, str, str], int] = defaultdict(int)
        self._buckets: defaultdict[tuple[str, str], list[int]] = defaultdict(lambda: [0] * (len(_SECONDS) + 1))
        self._sums: defaultdict[tuple[str, str], float] = defaultdict(float)

    def count(self, service: str, method: str, code: str, seconds: float) -> None:
        self._handled[service, method, code] += 1
        self._buckets[service, method][bisect_left(_SECONDS, seconds)] += 1
        self._sums[service, method] += seconds

    def collect(self) -> Iterator[Metric]:
        labels = ("grpc_service", "grpc_method", "grpc_code")
        handled = CounterMetricFamily("grpc_server_handled", "RPCs completed on the server", labels=labels)
        for series, count in self._handled.items():
            handled.add_metric(series, count)
        yield handled
        taken = HistogramMetricFamily("grpc_server_handling_seconds", "Time to handle an RPC", labels=labels[:2])
        for method, buckets in self._buckets.items():
            bounds = zip((*map(str, _SECONDS), "+Inf"), accumulate(buckets), strict=True)
            taken.add_metric(method, list(bounds), self._sums[method])
        yield taken


class TokenCacheFigures(Protocol):
    """What the cache of checked tokens tells of itself."""

    @property
    def size(self) -> int:
        """Tokens in it now."""
        ...

    @property
    def hits(self) -> int:
        """Calls that found their token in it."""
        ...

    @property
    def misses(self) -> int:
        """Calls that did not."""
        ...

    @property
    def evictions(self) -> int:
        """Tokens that were dropped to make room."""
        ...


class _TokenCacheCollector(Collector):
    def __init__(self, figures: Callable[[], TokenCacheFigures]) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        now = self._figures()
        prefix = "syncbeat_token_cache"
        yield GaugeMetricFamily(f"{prefix}_size", "Checked tokens that are remembered now", now.size)
        yield CounterMetricFamily(f"{prefix}_hits", "Calls whose token was remembered", now.hits)
        yield CounterMetricFamily(f"{prefix}_misses", "Calls whose token had to be checked", now.misses)
        yield CounterMetricFamily(f"{prefix}_evictions", "Remembered tokens dropped to make room", now.evictions)


class Metrics:
    """The metrics of one process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._calls = _CallCollector()
        self.registry.register(self._calls)
        self.open_streams = Gauge("syncbeat_open_streams", "Hint streams open now", registry=self.registry)
        self._outcomes = Counter(
            "syncbeat_delivery_attempts",
            "Delivery attempts by what became of them",
            ("outcome",),
            registry=self.registry,
        )

    def watch_token_cache(self, figures: Callable[[], TokenCacheFigures]) -> None:
        """Show the figures of the cache of checked tokens."""
        self.registry.register(_TokenCacheCollector(figures))

    def call_handled(self, service: str, method: str, code: str, seconds: float) -> None:
        """Count one finished RPC."""
        self._calls.count(service, method, code, seconds)

    def attempt_ended(self, outcome: str) -> None:
        """Count one delivery attempt."""
        self._outcomes.labels(outcome).inc()
