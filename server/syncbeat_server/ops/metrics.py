"""Every metric of the service, declared in one place. Names follow the gRPC Prometheus convention."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 1.0, 2.5, 5.0, 10.0)


class _Calls:
    """The finished calls of one method: by code, and by how long they took."""

    def __init__(self) -> None:
        self.codes: defaultdict[str, int] = defaultdict(int)
        self.buckets = [0] * (len(_SECONDS) + 1)
        self.seconds = 0.0

    def count(self, code: str, seconds: float) -> None:
        self.codes[code] += 1
        self.buckets[bisect_left(_SECONDS, seconds)] += 1
        self.seconds += seconds


class _CallCollector(Collector):
    """Finished RPCs. The library's own counters cost several times as much, on every call."""

    def __init__(self) -> None:
        self.methods: defaultdict[tuple[str, str], _Calls] = defaultdict(_Calls)

    def collect(self) -> Iterator[Metric]:
        labels = ("grpc_service", "grpc_method", "grpc_code")
        handled = CounterMetricFamily("grpc_server_handled", "RPCs completed on the server", labels=labels)
        taken = HistogramMetricFamily("grpc_server_handling_seconds", "Time to handle an RPC", labels=labels[:2])
        for method, calls in self.methods.items():
            if calls.codes:
                taken.add_metric(method, _cumulative(_SECONDS, calls.buckets), calls.seconds)
            for code, count in calls.codes.items():
                handled.add_metric((*method, code), count)
        yield from (handled, taken)


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


class RedisFigures(Protocol):
    """Tells of Redis: whether it is there in full, and the errors so far by cause."""

    errors: dict[Any, int]

    @property
    def is_up(self) -> bool:
        """True while all that was tried last has worked."""
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


class SyncFigures(Protocol):
    """What hints, polls and streams of one app tell of themselves."""

    @property
    def staleness(self) -> Sequence[float]:
        """Changes by their age when a device first heard of them: a histogram."""
        ...

    @property
    def staleness_sum(self) -> float:
        """Their ages in all, in seconds."""
        ...

    @property
    def intervals(self) -> Sequence[int]:
        """Hints by their interval: a histogram."""
        ...

    @property
    def interval_sum(self) -> float:
        """Their intervals in all, in seconds."""
        ...

    @property
    def requests(self) -> int:
        """Polls and fetches."""
        ...

    @property
    def avoided(self) -> float:
        """Polls less than those of fixed polling at the same target."""
        ...

    @property
    def optimality(self) -> float | None:
        """The fewest polls that give the same staleness, over those there were; None while too little is known."""
        ...


class _SyncCollector(Collector):
    """How fresh devices are and what it costs, by app. Counted where it happens, put together when somebody looks."""

    def __init__(
        self,
        figures: Callable[[], Mapping[str, SyncFigures]],
        staleness_s: Sequence[float],
        intervals_s: Sequence[float],
        tiers: Mapping[str, float],
    ) -> None:
        self._figures = figures
        self._staleness_s = staleness_s
        self._intervals_s = intervals_s
        self._tiers = tiers

    def collect(self) -> Iterator[Metric]:
        label = ("app",)
        staleness = HistogramMetricFamily(
            "syncbeat_sync_staleness_seconds", "Age of changes when a device first hears of them", labels=label
        )
        intervals = HistogramMetricFamily("syncbeat_sync_interval_seconds", "Intervals told to devices", labels=label)
        tiers = CounterMetricFamily("syncbeat_sync_hints", "Hints by tier", labels=("app", "tier"))
        requests = CounterMetricFamily("syncbeat_sync_requests", "Polls and fetches of devices", labels=label)
        avoided = CounterMetricFamily(
            "syncbeat_sync_requests_avoided",
            "Polls less than fixed polling at the same target would have sent",
            labels=label,
        )
        optimality = GaugeMetricFamily(
            "syncbeat_sync_optimality_ratio",
            "Fewest polls that give the measured staleness at the believed rates, over the polls of the last hour",
            labels=label,
        )
        for app_id, one in self._figures().items():
            staleness.add_metric((app_id,), _cumulative(self._staleness_s, one.staleness), one.staleness_sum)
            intervals.add_metric((app_id,), _cumulative(self._intervals_s, one.intervals), one.interval_sum)
            seen = 0
            for tier, longest_s in self._tiers.items():
                until = sum(one.intervals[: bisect_left(self._intervals_s, longest_s) + 1])
                tiers.add_metric((app_id, tier), until - seen)
                seen = until
            requests.add_metric((app_id,), one.requests)
            avoided.add_metric((app_id,), one.avoided)
            if one.optimality is not None:
                optimality.add_metric((app_id,), one.optimality)
        yield from (staleness, intervals, tiers, requests, avoided, optimality)


def _cumulative(bounds: Sequence[float], counts: Sequence[float]) -> list[tuple[str, float]]:
    return list(zip((*map(str, bounds), "+Inf"), accumulate(counts), strict=True))


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

        self._stretch = Gauge(
            "syncbeat_stretch", "How many times intervals in the background are made longer", registry=self.registry
        )
        self._booked = Gauge(
            "syncbeat_booked_per_second",
            "Arrivals that hints promise to the coming ten seconds: the fullest, and the mean",
            ("of",),
            registry=self.registry,
        )
        self._shed = Counter(
            "syncbeat_shed", "Calls refused because there were too many, by rank", ("rank",), registry=self.registry
        )

        self._watch_upkeep()

    def _watch_upkeep(self) -> None:
        self._forgotten = Counter(
            "syncbeat_rows_forgotten", "Old rows deleted, by what they are", ("rows",), registry=self.registry
        )
        self._skew = Gauge(
            "syncbeat_clock_skew_seconds",
            "By how much this machine's clock is ahead of the database's",
            registry=self.registry,
        )

    def watch_token_cache(self, figures: Callable[[], TokenCacheFigures]) -> None:
        """Show the figures of the cache of checked tokens."""
        self.registry.register(_TokenCacheCollector(figures))

    def watch_redis(self, figures: RedisFigures) -> None:
        """Show whether Redis is there in full."""
        self.registry.register(_RedisCollector(figures))

    def watch_sync(
        self,
        figures: Callable[[], Mapping[str, SyncFigures]],
        staleness_s: Sequence[float],
        intervals_s: Sequence[float],
        tiers: Mapping[str, float],
    ) -> None:
        """Show how fresh devices are: figures by app, their buckets' bounds, the longest interval of each tier."""
        self.registry.register(_SyncCollector(figures, staleness_s, intervals_s, tiers))

    def counter(self, service: str, method: str) -> Callable[[str, float], None]:
        """Counts each finished call of a method: its code, and the seconds it took."""
        return self._calls.methods[service, method].count

    def call_shed(self, rank: str) -> None:
        """Count one call that was refused because there were too many."""
        self._shed.labels(rank).inc()

    def paced(self, stretch: float, booked_peak: int, booked_mean: float) -> None:
        """What pacing does to intervals, and what the book of promised arrivals holds."""
        self._stretch.set(stretch)
        self._booked.labels("peak").set(booked_peak)
        self._booked.labels("mean").set(booked_mean)

    def attempt_ended(self, outcome: str) -> None:
        """Count one delivery attempt."""
        self._outcomes.labels(outcome).inc()

    def outcomes_voided(self, count: int) -> None:
        """Count outcomes whose lease had run out."""
        self._voided.inc(count)

    def removal_limit_hit(self, app_id: str) -> None:
        """Count that dead tokens of an app were not taken away."""
        self._braked.labels(app_id).inc()

    def clock_skew(self, ahead_s: float) -> None:
        """By how much this machine's clock is ahead of the database's."""
        self._skew.set(ahead_s)

    def rows_forgotten(self, rows: str, count: int) -> None:
        """Count old rows that were deleted."""
        self._forgotten.labels(rows).inc(count)

    def woken(self, app_id: str, again: bool) -> None:
        """Count a silent wake-up that the provider took."""
        self._woken.labels(app_id, "resend" if again else "first").inc()

    def wake_ups_missed(self, app_id: str, tries: str, count: int) -> None:
        """Count wake-ups that were not answered: `tries` is first, resend or all."""
        self._missed.labels(app_id, tries).inc(count)

    def breakers(self, open_by_app: Mapping[str, bool]) -> None:
        """Whose provider is not asked now, of all apps there are."""
        self._breaker_open.clear()
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
