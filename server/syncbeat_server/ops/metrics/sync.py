"""Metrics of sync: freshness by app and its cost in requests, load pacing."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from syncbeat_server.ops.metrics.cache import CacheCollector, CacheFigures
from syncbeat_server.ops.metrics.histogram import cumulative_buckets

_VIEW_CACHE = (
    "Devices' views that are remembered now",
    "Hints made of a remembered view",
    "Views read whole from the database",
    "Remembered views dropped to make room",
)


class SyncFigures(Protocol):
    """Figures of the hints, polls and streams of one app."""

    @property
    def staleness(self) -> Sequence[float]:
        """Return the histogram of changes by their age when a device first heard of them."""
        ...

    @property
    def staleness_sum(self) -> float:
        """Return the sum of their ages, in seconds."""
        ...

    @property
    def intervals(self) -> Sequence[int]:
        """Return the histogram of hints by their interval."""
        ...

    @property
    def interval_sum(self) -> float:
        """Return the sum of their intervals, in seconds."""
        ...

    @property
    def requests(self) -> int:
        """Return the number of polls and fetches."""
        ...

    @property
    def capped(self) -> int:
        """Return the polls, of devices that a person looks at, whose interval would be longer without the cap."""
        ...

    @property
    def avoided(self) -> float:
        """Return how many polls fewer there were than with fixed polling at the same target."""
        ...

    @property
    def optimality(self) -> float | None:
        """Return the fewest polls that give the same staleness over those made; None while too little is known."""
        ...


class _SyncCollector(Collector):
    """Exposes freshness and its cost by app. Counted where it happens, put together at a scrape."""

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
        capped = CounterMetricFamily(
            "syncbeat_sync_capped_polls",
            "Polls in the foreground that the longest allowed interval caused",
            labels=label,
        )
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
            staleness.add_metric((app_id,), cumulative_buckets(self._staleness_s, one.staleness), one.staleness_sum)
            intervals.add_metric((app_id,), cumulative_buckets(self._intervals_s, one.intervals), one.interval_sum)
            counted = 0
            for tier, longest_s in self._tiers.items():
                until = sum(one.intervals[: bisect_left(self._intervals_s, longest_s) + 1])
                tiers.add_metric((app_id, tier), until - counted)
                counted = until
            requests.add_metric((app_id,), one.requests)
            capped.add_metric((app_id,), one.capped)
            avoided.add_metric((app_id,), one.avoided)
            if one.optimality is not None:
                optimality.add_metric((app_id,), one.optimality)
        yield from (staleness, intervals, tiers, requests, capped, avoided, optimality)


class SyncMetrics:
    """Metrics of the sync feature of one process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._stretch = Gauge(
            "syncbeat_stretch", "How many times intervals in the background are made longer", registry=registry
        )
        self._booked = Gauge(
            "syncbeat_booked_per_second",
            "Arrivals that hints promise to the coming ten seconds: the fullest, and the mean",
            ("of",),
            registry=registry,
        )

    def watch_apps(
        self,
        figures: Callable[[], Mapping[str, SyncFigures]],
        staleness_s: Sequence[float],
        intervals_s: Sequence[float],
        tiers: Mapping[str, float],
    ) -> None:
        """Expose figures by app, read at each scrape, with their buckets' bounds and each tier's longest interval."""
        self._registry.register(_SyncCollector(figures, staleness_s, intervals_s, tiers))

    def watch_view_cache(self, figures: Callable[[], CacheFigures]) -> None:
        """Expose the figures of the cache of devices' views, read at each scrape."""
        self._registry.register(CacheCollector("syncbeat_view_cache", _VIEW_CACHE, figures))

    def paced(self, stretch: float, booked_peak: int, booked_mean: float) -> None:
        """Set the factor of background intervals, and the arrivals a second booked for the next ten seconds."""
        self._stretch.set(stretch)
        self._booked.labels("peak").set(booked_peak)
        self._booked.labels("mean").set(booked_mean)
