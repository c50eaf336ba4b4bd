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
    objectives: tuple[ObjectiveStatus, ...]
    """Empty if the database could not be asked."""


class Verdict(StrEnum):
    """Names what a report comes to; each is worse than the one before."""

    OK = "OK"
    WARN = "WARN"
    ROLLBACK = "ROLLBACK"


class Objective(StrEnum):
    """Names the objectives of the service."""

    AVAILABILITY = "availability"
    ERRORS = "errors"
    HINT_LATENCY = "hint_latency"
    CALL_LATENCY = "call_latency"
    PUSH_ACCEPTED = "push_accepted"
    STALENESS = "staleness"


class Series(StrEnum):
    """Names what is counted, with what its amounts are, in order. Other bounds of buckets need another name."""

    CALLS = "calls"
    """Ended calls; those not answered in time or refused under load; those that failed by our fault."""
    SYNC_CALLS = "sync_calls"
    """Ended calls of SyncService; those of them that failed by our fault."""
    HINT_SECONDS = "hint_seconds"
    """Calls of GetHint by duration."""
    CALL_SECONDS = "call_seconds"
    """Calls that are no streams by duration."""
    PUSH = "push"
    """Attempts that a provider accepted; those of sound messages to sound tokens that it did not."""
    STALENESS = "staleness"
    """Changes that devices heard of in time by their app's target; those that they heard of later."""
    POOL = "pool"
    """Connections at work, of all samples together; connections that there might have been."""
    DATABASE = "database"
    """Statements and transactions; the seconds that they took, with the wait for a connection."""
    CPU = "cpu"
    """Seconds of CPU of processes that serve calls; calls that they ended meanwhile."""
    DEADLOCKS = "deadlocks"
    """Deadlocks that PostgreSQL ended."""


Amounts = tuple[float, ...]
Sums = Mapping[str, Amounts]
"""Amounts by series, over some span of time."""


@dataclass(frozen=True)
class Goals:
    """Service level objectives: shares from 0 to 1, and the seconds that 95 of 100 calls are to take at most.

    A share of fewer than `least_events` events says nothing, and brings no verdict.
    """

    availability: float = 0.999
    errors: float = 0.005
    hint_p95_s: float = 0.05
    call_p95_s: float = 0.2
    push_accepted: float = 0.95
    staleness: float = 0.95
    least_events: int = 100


@dataclass(frozen=True)
class Counted:
    """Events that went well or did not."""

    good: float
    bad: float

    @property
    def events(self) -> float:
        """Return how many there were."""
        return self.good + self.bad

    @property
    def bad_share(self) -> float:
        """Return the share that went wrong; 0 without any."""
        return self.bad / self.events if self.events > 0.0 else 0.0


@dataclass(frozen=True)
class ObjectiveStatus:
    """One objective over 30 days: what is aimed at and reached, 0 to 1, and the part of its error budget that is left.

    The budget is 1 when it is whole, 0 when it is spent, and negative beyond that.
    """

    name: str
    objective: float
    actual: float
    budget_left: float
    events: float


@dataclass(frozen=True)
class Standing:
    """The objectives; for alarms the budget left of each, and its burn rate by window (`5m`, `30m`, `1h`, `6h`, `3d`).

    To alarms a budget is whole, and does not burn, while there are too few events to judge it by.
    """

    objectives: tuple[ObjectiveStatus, ...]
    budgets: Mapping[str, float]
    burn_rates: Mapping[tuple[str, str], float]


@dataclass(frozen=True)
class FigureRule:
    """A figure from outside, with what it must pass for WARN and for ROLLBACK: below it, if the second is the lower."""

    name: str
    warn: float
    rollback: float


@dataclass(frozen=True)
class Figure:
    """A figure from outside, as an operator entered it."""

    name: str
    value: float
    put_at: datetime


@dataclass(frozen=True)
class Trigger:
    """A figure that a verdict goes by. `events` is what it is a share of; None: it is none.

    Where `rollback` is lower than `warn`, less is worse; an infinite one is never passed.
    """

    name: str
    value: float
    warn: float
    rollback: float
    unit: str
    window_s: float = 0.0
    events: float | None = None
    verdict: Verdict = Verdict.OK


@dataclass(frozen=True)
class Workload:
    """Figures that reports are compared by: calls, how long they took, and the CPU of each; 0 without any calls."""

    calls: float = 0.0
    errors: float = 0.0
    hints: float = 0.0
    hint_p95_s: float = 0.0
    call_p95_s: float = 0.0
    cpu_calls: float = 0.0
    cpu_s_per_call: float = 0.0


@dataclass(frozen=True)
class SloReport:
    """The answer to `GetSloReport`. `objectives` is empty when PostgreSQL could not be asked."""

    verdict: Verdict
    triggers: tuple[Trigger, ...]
    window_s: float
    workload: Workload
    objectives: tuple[ObjectiveStatus, ...]
    made_at: datetime
