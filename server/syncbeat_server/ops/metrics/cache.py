"""Figures of a cache as metrics, read at each scrape."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


class CacheFigures(Protocol):
    """Figures of a cache since its process started."""

    @property
    def size(self) -> int:
        """Return the number of entries cached now."""
        ...

    @property
    def hits(self) -> int:
        """Return the number of calls that found theirs."""
        ...

    @property
    def misses(self) -> int:
        """Return the number of calls that did not."""
        ...

    @property
    def evictions(self) -> int:
        """Return the number of entries dropped to make room."""
        ...


class CacheCollector(Collector):
    """Exposes the size, hits, misses and evictions of one cache under a prefix."""

    def __init__(self, prefix: str, texts: tuple[str, str, str, str], figures: Callable[[], CacheFigures]) -> None:
        """`texts` describe the four metrics in that order."""
        self._prefix = prefix
        self._texts = texts
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        """Yield the four metrics."""
        now, (size, hits, misses, evictions) = self._figures(), self._texts
        yield GaugeMetricFamily(f"{self._prefix}_size", size, now.size)
        yield CounterMetricFamily(f"{self._prefix}_hits", hits, now.hits)
        yield CounterMetricFamily(f"{self._prefix}_misses", misses, now.misses)
        yield CounterMetricFamily(f"{self._prefix}_evictions", evictions, now.evictions)
