"""Wires the health of a process: what it checks, what each service needs, and what is shown of its pool."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from syncbeat_server.clock import Clock
from syncbeat_server.errors import Reason
from syncbeat_server.runtime.health_monitor import CheckResult, CheckState, HealthCheck, HealthMonitor, HealthRule
from syncbeat_server.storage.database_probe import DatabaseProbe
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.storage.redis.failure_causes import SENTENCES
from syncbeat_server.storage.redis.outage_log import RedisHealth

POSTGRESQL, MIGRATIONS, REDIS = "postgresql", "migrations", "redis"
STORED = (POSTGRESQL, MIGRATIONS)
"""The checks that each service of the contract needs; Redis is not among them, since nothing is lost without it."""


def watch_health(database: Database, redis: RedisHealth, clock: Clock, rule: HealthRule) -> HealthMonitor:
    """Create the monitor of a process with the checks that every role has."""
    monitor, probe = HealthMonitor(clock, database.pool_figures.failed, rule), DatabaseProbe(database)

    async def writes() -> CheckResult:
        await probe.check_writes()
        return CheckResult()

    async def schema() -> CheckResult:
        await probe.check_schema()
        return CheckResult()

    async def wakes() -> CheckResult:
        cause = redis.cause
        return CheckResult() if cause is None else _degraded(Reason.DEPENDENCY_DOWN, SENTENCES[cause])

    monitor.add(HealthCheck(POSTGRESQL, writes, needed=True))
    monitor.add(HealthCheck(MIGRATIONS, schema, needed=True))
    monitor.add(HealthCheck(REDIS, wakes))
    return monitor


def issuers_check(failing: Callable[[], Iterable[str]]) -> HealthCheck:
    """Return the check of the issuers whose keys are fetched; `failing` names those whose last fetch failed."""

    async def ask() -> CheckResult:
        names = ", ".join(sorted(failing()))
        return _degraded(Reason.DEPENDENCY_DOWN, f"no new keys from {names}") if names else CheckResult()

    return HealthCheck("issuers", ask)


def providers_check(open_breakers: Callable[[], Iterable[str]]) -> HealthCheck:
    """Return the check of push providers; `open_breakers` names the apps whose provider is not asked now."""

    async def ask() -> CheckResult:
        names = ", ".join(sorted(open_breakers()))
        return _degraded(Reason.DEPENDENCY_DOWN, f"not asked now: the providers of {names}") if names else CheckResult()

    return HealthCheck("push", ask)


def pool_view(database: Database) -> Callable[[], Mapping[str, object]]:
    """Return what makes the figures of the pool for operators; times are in milliseconds."""

    def view() -> Mapping[str, object]:
        figures, status = database.pool_figures, database.pool_status
        requests = max(1, figures.requests)
        return {
            "totalRequests": figures.requests,
            "successRate": round(1 - figures.failures / requests, 6),
            "averageResponseTime": round(1_000 * figures.seconds / requests, 3),
            "circuitState": database.breaker.state,
            "size": status.size,
            "connections": status.connections,
            "inUse": status.in_use,
            "waiters": status.waiters,
            "acquireP95": round(1_000 * status.acquire_p95_s, 3),
            "shed": {rank.name: count for rank, count in figures.shed.items()},
        }

    return view


def _degraded(reason: Reason, detail: str) -> CheckResult:
    return CheckResult(CheckState.DEGRADED, reason, detail)
