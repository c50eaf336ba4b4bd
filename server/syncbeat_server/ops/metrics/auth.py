"""Metrics of authentication: the cache of checked tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


class TokenCacheFigures(Protocol):
    """Figures of the cache of checked tokens."""

    @property
    def size(self) -> int:
        """Return the number of tokens cached now."""
        ...

    @property
    def hits(self) -> int:
        """Return the number of calls that found their token cached."""
        ...

    @property
    def misses(self) -> int:
        """Return the number of calls that did not."""
        ...

    @property
    def evictions(self) -> int:
        """Return the number of tokens dropped to make room."""
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


class AuthMetrics:
    """Metrics of the authentication of one process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def watch_token_cache(self, figures: Callable[[], TokenCacheFigures]) -> None:
        """Expose the figures of the cache of checked tokens, read at each scrape."""
        self._registry.register(_TokenCacheCollector(figures))
