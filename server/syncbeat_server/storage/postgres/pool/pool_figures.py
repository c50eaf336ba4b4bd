"""Counts what a pool of connections does, for metrics and for the status of a process."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from syncbeat_server.errors import DependencyDown, Overloaded
from syncbeat_server.ops.work_origin import WorkRank

ACQUIRE_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_REMEMBERED = 2_048  # acquisitions, of which the p95 is that of the last minute
_RECENT_S = 60.0


@dataclass(frozen=True)
class PoolStatus:
    """Figures of a pool at one moment.

    Attributes:
        size: Connections it may have.
        connections: Those it has.
        in_use: Those that somebody works with.
        waiters: Callers that wait for one.
        acquire_p95_s: Seconds that 95 % of the last minute's callers waited at most; 0 without any.
    """

    size: int
    connections: int
    in_use: int
    waiters: int
    acquire_p95_s: float


class PoolFigures:
    """Counts of one pool since its start. A request is a statement or a transaction, from the wait to its end."""

    def __init__(self) -> None:
        self.requests = self.failures = 0
        """Requests that ended, and those of them that the database or the lack of connections failed."""
        self.seconds = 0.0
        """The time that requests took."""
        self.shed = dict.fromkeys(WorkRank, 0)
        """Requests sent away since no connection was free in time."""
        self.acquire_buckets = [0] * (len(ACQUIRE_SECONDS) + 1)
        self.acquire_seconds = 0.0
        self.failed = asyncio.Event()
        """Set by each failure, for who looks into it and clears it."""
        self._recent: deque[tuple[float, float]] = deque(maxlen=_REMEMBERED)

    def acquired(self, now_s: float, seconds: float) -> None:
        """Count a connection that was handed out after `seconds`."""
        self.acquire_buckets[bisect_left(ACQUIRE_SECONDS, seconds)] += 1
        self.acquire_seconds += seconds
        self._recent.append((now_s, seconds))

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count the block as a request, failed if the database or the lack of a connection ends it."""
        now = asyncio.get_running_loop().time
        began_s, failed = now(), False
        try:
            yield
        except (DependencyDown, Overloaded) as error:
            # Not a kind of Overloaded: a conflict, or a lock that was not free, is no fault of the database.
            failed = isinstance(error, DependencyDown) or type(error) is Overloaded
            raise
        finally:
            self.requests += 1
            self.seconds += now() - began_s
            if failed:
                self.failures += 1
                self.failed.set()

    def acquire_p95_s(self, now_s: float) -> float:
        """Return the p95 of the waits of the last minute, of the last 2,048 callers at most."""
        waits = sorted(seconds for at, seconds in self._recent if now_s - at <= _RECENT_S)
        return waits[min(len(waits) - 1, int(0.95 * len(waits)))] if waits else 0.0
