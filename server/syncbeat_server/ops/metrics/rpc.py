"""Metrics of RPCs: finished calls by code and duration, calls refused under load."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from syncbeat_server.ops.metrics.histogram import cumulative_buckets

# 15 at most: a call is put into its bucket by four comparisons.
CALL_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the buckets in which calls are counted by their duration."""


class CallCounts(NamedTuple):
    """Finished calls of one method since the start: by code, and by duration, with one bucket more than bounds."""

    codes: Mapping[str, int]
    buckets: tuple[int, ...]


class _MethodCalls:
    """Counts the finished calls of one method by code and by duration."""

    def __init__(self) -> None:
        self.codes: defaultdict[str, int] = defaultdict(int)
        self.buckets = [0] * (len(CALL_SECONDS) + 1)
        self.seconds = 0.0

    def count(self, code: str, seconds: float) -> None:
        self.codes[code] += 1
        self.buckets[bisect_left(CALL_SECONDS, seconds)] += 1
        self.seconds += seconds


class _CallCollector(Collector):
    """Exposes the finished calls of all methods. The library's own counters cost several times as much a call."""

    def __init__(self) -> None:
        self.methods: defaultdict[tuple[str, str], _MethodCalls] = defaultdict(_MethodCalls)

    def collect(self) -> Iterator[Metric]:
        labels = ("grpc_service", "grpc_method", "grpc_code")
        handled = CounterMetricFamily("grpc_server_handled", "RPCs completed on the server", labels=labels)
        duration = HistogramMetricFamily("grpc_server_handling_seconds", "Time to handle an RPC", labels=labels[:2])
        for method, calls in self.methods.items():
            if calls.codes:
                duration.add_metric(method, cumulative_buckets(CALL_SECONDS, calls.buckets), calls.seconds)
            for code, count in calls.codes.items():
                handled.add_metric((*method, code), count)
        yield from (handled, duration)


class RpcMetrics:
    """Metrics of the RPCs of one process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._calls = _CallCollector()
        registry.register(self._calls)
        self.open_streams = Gauge("syncbeat_open_streams", "Hint streams open now", registry=registry)
        self._shed = Counter(
            "syncbeat_shed", "Calls refused because there were too many, by rank", ("rank",), registry=registry
        )
        self.shed = 0
        """Calls refused because there were too many, of all ranks."""
        self._tokens_refused = Counter(
            "syncbeat_tokens_refused",
            "Calls refused for their token or for having none, by cause; the log says more",
            ("cause",),
            registry=registry,
        )

    def counter(self, service: str, method: str) -> Callable[[str, float], None]:
        """Return the function that counts a finished call of a method by its code and duration in seconds."""
        return self._calls.methods[service, method].count

    def counts(self) -> dict[str, CallCounts]:
        """Return the finished calls of each method that had any, by its full name (`service/method`)."""
        return {
            f"{service}/{method}": CallCounts(dict(calls.codes), tuple(calls.buckets))
            for (service, method), calls in self._calls.methods.items()
            if calls.codes
        }

    def token_refused(self, cause: str) -> None:
        """Count a refused token."""
        self._tokens_refused.labels(cause).inc()

    def call_shed(self, rank: str) -> None:
        """Count a call refused because there were too many."""
        self.shed += 1
        self._shed.labels(rank).inc()
