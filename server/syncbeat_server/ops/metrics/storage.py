"""Metrics of the stores: health of Redis, deleted rows, clock skew."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from syncbeat_server.ops.metrics.histogram import cumulative_buckets
from syncbeat_server.ops.work_origin import WorkRank


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


class PoolStatus(Protocol):
    """Figures of a pool at one moment."""

    @property
    def size(self) -> int:
        """Return how many connections it may have."""
        ...

    @property
    def connections(self) -> int:
        """Return how many it has."""
        ...

    @property
    def in_use(self) -> int:
        """Return how many somebody works with."""
        ...

    @property
    def waiters(self) -> int:
        """Return how many callers wait for one."""
        ...

    @property
    def acquire_p95_s(self) -> float:
        """Return the seconds that 95 % of the last minute's callers waited at most."""
        ...


class PoolFigures(Protocol):
    """Counts of a pool since its start."""

    requests: int
    failures: int
    acquire_buckets: list[int]
    acquire_seconds: float

    @property
    def shed(self) -> Mapping[WorkRank, int]:
        """Return the requests sent away, by rank."""
        ...


class Pool(Protocol):
    """Pool of PostgreSQL connections."""

    @property
    def pool_status(self) -> PoolStatus:
        """Return the figures of this moment."""
        ...

    @property
    def pool_figures(self) -> PoolFigures:
        """Return the counts since the start."""
        ...


class _PoolCollector(Collector):
    def __init__(self, pool: Pool, acquire_s: Sequence[float]) -> None:
        self._pool = pool
        self._acquire_s = acquire_s

    def collect(self) -> Iterator[Metric]:
        status, figures = self._pool.pool_status, self._pool.pool_figures
        gauges = {
            "size": ("PostgreSQL connections that this process may have", status.size),
            "connections": ("PostgreSQL connections that this process has", status.connections),
            "in_use": ("PostgreSQL connections that are at work", status.in_use),
            "waiters": ("Callers that wait for a PostgreSQL connection", status.waiters),
            "acquire_p95_seconds": (
                "Wait for a PostgreSQL connection that 95 % of the last minute's callers had at most",
                status.acquire_p95_s,
            ),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(f"syncbeat_pool_{name}", text, value)
        yield CounterMetricFamily(
            "syncbeat_pool_requests", "Statements and transactions that ended, however", figures.requests
        )
        yield CounterMetricFamily(
            "syncbeat_pool_failures",
            "Statements and transactions that the database, or the lack of a free connection, failed",
            figures.failures,
        )
        shed = CounterMetricFamily(
            "syncbeat_pool_shed", "Work sent away since no connection was free in time, by rank", labels=("rank",)
        )
        for rank, count in figures.shed.items():
            shed.add_metric((rank.name.lower(),), count)
        acquire = HistogramMetricFamily("syncbeat_pool_acquire_seconds", "Wait for a PostgreSQL connection")
        acquire.add_metric((), cumulative_buckets(self._acquire_s, figures.acquire_buckets), figures.acquire_seconds)
        yield from (shed, acquire)


class HealthFigures(Protocol):
    """State of a process at one moment."""

    @property
    def ready(self) -> bool:
        """Return True if the process is to be sent calls."""
        ...

    @property
    def passed(self) -> Mapping[str, bool]:
        """Return by the name of each check whether it found nothing."""
        ...


class _HealthCollector(Collector):
    def __init__(self, figures: Callable[[], HealthFigures]) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        now = self._figures()
        checks = GaugeMetricFamily("syncbeat_check_passed", "1 while a health check finds nothing", labels=("check",))
        for name, passed in now.passed.items():
            checks.add_metric((name,), passed)
        yield from (GaugeMetricFamily("syncbeat_ready", "1 while the process is to be sent calls", now.ready), checks)


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

    def watch_pool(self, pool: Pool, acquire_s: Sequence[float]) -> None:
        """Expose the figures of the pool, read at each scrape, with the bounds of the waits' buckets."""
        self._registry.register(_PoolCollector(pool, acquire_s))

    def watch_health(self, figures: Callable[[], HealthFigures]) -> None:
        """Expose the health of the process, read at each scrape."""
        self._registry.register(_HealthCollector(figures))

    def clock_skew(self, ahead_s: float) -> None:
        """Set by how many seconds this machine's clock is ahead of the database's."""
        self._skew.set(ahead_s)

    def rows_deleted(self, kind: str, count: int) -> None:
        """Count old rows that were deleted, by their kind."""
        self._forgotten.labels(kind).inc(count)
