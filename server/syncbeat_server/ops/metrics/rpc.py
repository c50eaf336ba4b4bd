"""Metrics of RPCs: started and finished calls, their durations, calls refused under load.

Names and labels are those of go-grpc-middleware's `providers/prometheus`, which dashboards for gRPC expect
(https://github.com/grpc-ecosystem/go-grpc-middleware); codes are spelt as in gRPC's specification.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar

from syncbeat_server.ops.metrics.histogram import cumulative_buckets
from syncbeat_server.ops.tracing.spans import recorded_span

# 15 at most: a call is put into its bucket by four comparisons.
CALL_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the buckets in which calls are counted by their duration."""


class CallCounts(NamedTuple):
    """Finished calls of one method since the start: by code, and by duration, with one bucket more than bounds.

    `overloaded`: those of them that were refused under load, whatever it was that had no room. `excused`: those whose
    code counts as a failure of the service, and that their callers brought about.
    """

    codes: Mapping[str, int]
    buckets: tuple[int, ...]
    overloaded: int = 0
    excused: int = 0


class MethodCalls:
    """Counts the calls of one method: those that ended, and by its handler `started`, `overloaded`, `excused`."""

    def __init__(self, grpc_type: str) -> None:
        self.grpc_type = grpc_type
        self.started = 0
        self.overloaded = self.excused = 0
        self.exemplars: dict[int, Exemplar] = {}
        self.codes: defaultdict[str, int] = defaultdict(int)
        self.buckets = [0] * (len(CALL_SECONDS) + 1)
        self.seconds = 0.0

    def count(self, code: str, seconds: float) -> None:
        """Count a call that ended."""
        self.codes[code] += 1
        self.buckets[bisect_left(CALL_SECONDS, seconds)] += 1
        self.seconds += seconds

    def count_traced(self, code: str, seconds: float) -> None:
        """Count a call that ended, and keep its trace as the example of its bucket if it is exported."""
        self.count(code, seconds)
        span = recorded_span()
        if span is not None:
            labels = {"trace_id": f"{span.context.trace_id:032x}"}
            self.exemplars[bisect_left(CALL_SECONDS, seconds)] = Exemplar(labels, seconds)

    def exposed_buckets(self) -> list[Any]:
        """Return the cumulative buckets with their examples, as the library takes them."""
        buckets = cumulative_buckets(CALL_SECONDS, self.buckets)
        return [(*pair, self.exemplars.get(number)) for number, pair in enumerate(buckets)]


class _CallCollector(Collector):
    """Exposes the finished calls of all methods. The library's own counters cost several times as much a call."""

    def __init__(self) -> None:
        self.methods: dict[tuple[str, str], MethodCalls] = {}

    def collect(self) -> Iterator[Metric]:
        labels = ("grpc_type", "grpc_service", "grpc_method")
        started = CounterMetricFamily("grpc_server_started", "RPCs started on the server", labels=labels)
        handled = CounterMetricFamily(
            "grpc_server_handled", "RPCs completed on the server, whatever their code", labels=(*labels, "grpc_code")
        )
        duration = HistogramMetricFamily("grpc_server_handling_seconds", "Time to handle an RPC", labels=labels)
        overloaded = CounterMetricFamily(
            "syncbeat_calls_overloaded", "RPCs refused under load, whatever had no room for them", labels=labels[1:]
        )
        for method, calls in self.methods.items():
            names = (calls.grpc_type, *method)
            if calls.overloaded:
                overloaded.add_metric(method, calls.overloaded)
            if calls.started or calls.codes:
                started.add_metric(names, max(calls.started, sum(calls.codes.values())))
                duration.add_metric(names, calls.exposed_buckets(), calls.seconds)
            for code, count in calls.codes.items():
                handled.add_metric((*names, code), count)
        yield from (started, handled, duration, overloaded)


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
        self._tokens_refused = Counter(
            "syncbeat_tokens_refused",
            "Calls refused for their token or for having none, by cause; the log says more",
            ("cause",),
            registry=registry,
        )

    def counter(self, service: str, method: str) -> Callable[[str, float], None]:
        """Return the function that counts a finished call of a method by its code and duration in seconds."""
        return self.calls(service, method).count

    def calls(self, service: str, method: str, grpc_type: str = "unary") -> MethodCalls:
        """Return what counts the calls of a method."""
        return self._calls.methods.setdefault((service, method), MethodCalls(grpc_type))

    def counts(self) -> dict[str, CallCounts]:
        """Return the finished calls of each method that had any, by its full name (`service/method`)."""
        return {
            f"{service}/{method}": CallCounts(dict(calls.codes), tuple(calls.buckets), calls.overloaded, calls.excused)
            for (service, method), calls in self._calls.methods.items()
            if calls.codes
        }

    def token_refused(self, cause: str) -> None:
        """Count a refused token."""
        self._tokens_refused.labels(cause).inc()

    def call_shed(self, rank: str) -> None:
        """Count a call refused because there were too many."""
        self._shed.labels(rank).inc()
