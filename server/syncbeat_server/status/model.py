"""Values of the status feature: figures of one process, and of the database that all share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

MOST_METHODS, MOST_BREAKERS, MOST_CACHES = 48, 20, 8
"""Of those that a process tells of: the contract has some forty methods; a hundred processes fit into one answer."""


class BreakerState(StrEnum):
    """Names the states of a circuit breaker."""

    CLOSED = "CLOSED"
    OPEN = "OPEN"
    HALF_OPEN = "HALF_OPEN"


@dataclass(frozen=True)
class BuildStatus:
    """The program that a process runs; `revision` is empty if nobody said it."""

    version: str
    revision: str
    python: str
    grpc: str


@dataclass(frozen=True)
class MethodStatus:
    """Calls of one method that ended within the window, `errors` of them by our fault."""

    method: str
    calls: int
    errors: int
    rate: float
    p50_s: float
    p95_s: float
    p99_s: float


@dataclass(frozen=True)
class PoolStatus:
    """The pool of PostgreSQL connections of a process: those that it may have (`size`), has, and works with."""

    size: int
    connections: int
    in_use: int
    waiters: int
    acquire_p95_s: float


@dataclass(frozen=True)
class BreakerStatus:
    """One circuit breaker: `failures` in a row, and the moment at which it last opened."""

    name: str
    state: BreakerState
    failures: int
    opened_at: datetime | None


@dataclass(frozen=True)
class CacheStatus:
    """One cache, since its process started."""

    name: str
    entries: int
    hits: int
    misses: int
    evictions: int

    @property
    def hit_rate(self) -> float:
        """Return the share of look-ups that found theirs; 0 without any."""
        lookups = self.hits + self.misses
        return self.hits / lookups if lookups else 0.0


@dataclass(frozen=True)
class LimitStatus:
    """Rates of callers in a process: shared over Redis or not, buckets in memory, and counts since its start."""

    shared: bool
    buckets: int
    refused: int
    local_decisions: int


@dataclass(frozen=True)
class StreamStatus:
    """Streams of a process: those open now, and the messages that they sent a second within the window."""

    open: int
    signals_per_s: float


@dataclass(frozen=True)
class ProcessStatus:
    """Figures of one process; `key` tells it from others of its name."""

    key: str
    name: str
    role: str
    started_at: datetime
    written_at: datetime
    build: BuildStatus
    window_s: float
    methods: tuple[MethodStatus, ...]
    pool: PoolStatus
    breakers: tuple[BreakerStatus, ...]
    caches: tuple[CacheStatus, ...]
    limits: LimitStatus | None
    streams: StreamStatus


@dataclass(frozen=True)
class QueueStatus:
    """Deliveries of an app that are not done, by state; see `GetStatus` in the contract."""

    counts: Mapping[str, int]
    oldest_overdue_s: float | None
    truncated: bool


@dataclass(frozen=True)
class MigrationStatus:
    """Numbers of the newest migration of the database, and of this code."""

    applied: int
    known: int


@dataclass(frozen=True)
class DatabaseStatus:
    """Connections of this login by state, and the schema; empty and None if the database could not be asked."""

    connections: Mapping[str, int] = field(default_factory=dict)
    migrations: MigrationStatus | None = None


@dataclass(frozen=True)
class DeploymentStatus:
    """The answer to `GetStatus`: `own` is the process that answers, `processes` are all, `omitted` how many more."""

    own: ProcessStatus
    processes: tuple[ProcessStatus, ...]
    omitted: int
    database: DatabaseStatus
    queue: QueueStatus | None
