"""Every metric of the service, declared in one place. Names follow the gRPC Prometheus convention."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
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

        self._voided = Counter(
            "syncbeat_delivery_outcomes_voided",
            "Outcomes not recorded, since the lease had run out or the device had acknowledged before",
            registry=self.registry,
        )
        self._braked = Counter(
            "syncbeat_token_removals_braked",
            "Times that too many registration tokens were called dead to believe it",
            ("app",),
            registry=self.registry,
        )
        self._woken = Counter(
            "syncbeat_wakeups",
            "Silent wake-ups that the provider took: for the first time, or sent again",
            ("app", "kind"),
            registry=self.registry,
        )
        self._missed = Counter(
            "syncbeat_wakeups_missed",
            "Wake-ups that nobody answered in time: the first try, one sent again, or all tries of one",
            ("app", "tries"),
            registry=self.registry,
        )
        self._breaker_open = Gauge(
            "syncbeat_push_breaker_open", "1 while an app's provider is not asked", ("app",), registry=self.registry
        )
        self._waiting = Gauge(
            "syncbeat_deliveries_waiting", "Deliveries that wait, by state", ("app", "state"), registry=self.registry
        )
        self._oldest = Gauge(
            "syncbeat_deliveries_oldest_due_seconds",
            "For how long the oldest has been due",
            ("app", "state"),
            registry=self.registry,
        )
        self._unaccounted = Gauge(
            "syncbeat_deliveries_unaccounted",
            "Accepted deliveries of the last hour that are in no state: always 0",
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

    def outcomes_voided(self, count: int) -> None:
        """Count outcomes whose lease had run out."""
        self._voided.inc(count)

    def removals_braked(self, app_id: str) -> None:
        """Count that dead tokens of an app were not taken away."""
        self._braked.labels(app_id).inc()

    def woken(self, app_id: str, again: bool) -> None:
        """Count a silent wake-up that the provider took."""
        self._woken.labels(app_id, "resend" if again else "first").inc()

    def wake_ups_missed(self, app_id: str, tries: str, count: int) -> None:
        """Count wake-ups that were not answered: `tries` is first, resend or all."""
        self._missed.labels(app_id, tries).inc(count)

    def breakers(self, open_by_app: Mapping[str, bool]) -> None:
        """Whose provider is not asked now."""
        for app_id, is_open in open_by_app.items():
            self._breaker_open.labels(app_id).set(is_open)

    def queue_counted(self, waiting: Mapping[tuple[str, str], tuple[int, float]], unaccounted: int) -> None:
        """What waits by (app, state): how many, and for how long the oldest has been due."""
        self._waiting.clear()
        self._oldest.clear()
        for labels, (count, oldest_s) in waiting.items():
            self._waiting.labels(*labels).set(count)
            self._oldest.labels(*labels).set(oldest_s)
        self._unaccounted.set(unaccounted)
