"""Collects the figures of this process from the parts of it, which say where theirs are to be had.

All of it is read when somebody asks: nothing here is on the way of a call.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from syncbeat_server.clock import Clock
from syncbeat_server.ops.metrics.cache import CacheFigures
from syncbeat_server.status.call_window import CallWindow, WindowRule
from syncbeat_server.status.model import (
    MOST_CACHES,
    MOST_METHODS,
    BreakerState,
    BreakerStatus,
    BuildStatus,
    CacheStatus,
    LimitStatus,
    PoolStatus,
    ProcessStatus,
    StreamStatus,
)
from syncbeat_server.status.policy.method_figures import Counts, method_figures

_LONGEST_NAME, _LONGEST_IN_KEY = 128, 100


class Breaker(Protocol):
    """A circuit breaker of the process."""

    @property
    def name(self) -> str:
        """Return what it guards."""
        ...

    @property
    def state(self) -> str:
        """Return CLOSED, OPEN or HALF_OPEN."""
        ...

    @property
    def failures(self) -> int:
        """Return the failures in a row."""
        ...

    @property
    def last_opened_at(self) -> float | None:
        """Return the moment of the monotonic clock at which it last opened; None: never."""
        ...


@dataclass(frozen=True)
class Identity:
    """The process: its name, its role, and the program that it runs."""

    name: str
    role: str
    build: BuildStatus


@dataclass(frozen=True)
class CallSource:
    """Counts the finished calls of each method; `bounds` are those of the buckets of their durations."""

    bounds: tuple[float, ...]
    counts: Callable[[], Mapping[str, Counts]]


def no_streams() -> tuple[int, int]:
    """Return the figures of a process without streams: none open, no message sent."""
    return 0, 0


class OwnStatus:
    """The figures of this process. Its parts add where theirs are read."""

    def __init__(
        self,
        identity: Identity,
        clock: Clock,
        calls: CallSource,
        pool: Callable[[], PoolStatus],
        rule: WindowRule,
    ) -> None:
        self.key = f"{identity.name[:_LONGEST_IN_KEY]}:{secrets.token_hex(8)}"
        """Tells this process from others of its name, such as the one that ran here before."""
        self.streams: Callable[[], tuple[int, int]] = no_streams
        """Returns how many streams are open, and how many messages they all sent so far."""
        self.limits: Callable[[], LimitStatus] | None = None
        self._identity = identity
        self._clock = clock
        self._calls = calls
        self._pool = pool
        self._breakers: list[Callable[[], Iterable[Breaker]]] = []
        self._caches: dict[str, Callable[[], CacheFigures]] = {}
        self._started_at = clock.now()
        self._window = CallWindow(clock, calls.counts, lambda: self.streams()[1], rule)
        self.run = self._window.run

    def add_breakers(self, breakers: Callable[[], Iterable[Breaker]]) -> None:
        """Tell of these breakers, those that there are whenever somebody asks."""
        self._breakers.append(breakers)

    def add_cache(self, name: str, figures: Callable[[], CacheFigures]) -> None:
        """Tell of a cache."""
        self._caches[name] = figures

    def read(self) -> ProcessStatus:
        """Return the figures of this moment."""
        identity, now = self._identity, self._clock.now()
        first, last, span_s = self._window.ends()
        return ProcessStatus(
            key=self.key,
            name=identity.name,
            role=identity.role,
            started_at=self._started_at,
            written_at=now,
            build=identity.build,
            window_s=span_s,
            methods=method_figures(self._calls.bounds, first.calls, last.calls, span_s, MOST_METHODS),
            pool=self._pool(),
            breakers=self._breaker_statuses(now),
            caches=tuple(_cache(name, figures()) for name, figures in list(self._caches.items())[:MOST_CACHES]),
            limits=None if self.limits is None else self.limits(),
            streams=StreamStatus(self.streams()[0], (last.signals - first.signals) / span_s),
        )

    def _breaker_statuses(self, now: datetime) -> tuple[BreakerStatus, ...]:
        monotonic = self._clock.monotonic()

        def status(one: Breaker) -> BreakerStatus:
            at_s = one.last_opened_at
            opened_at = None if at_s is None else now - timedelta(seconds=monotonic - at_s)
            return BreakerStatus(one.name[:_LONGEST_NAME], BreakerState(one.state), one.failures, opened_at)

        found = (status(one) for breakers in self._breakers for one in breakers())
        return tuple(sorted(found, key=lambda one: one.name))


def _cache(name: str, figures: CacheFigures) -> CacheStatus:
    return CacheStatus(name, figures.size, figures.hits, figures.misses, figures.evictions)
