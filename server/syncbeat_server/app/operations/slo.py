"""Wires the service level objectives of a process: what is counted where, and who tells how they stand."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from syncbeat_server.clock import Clock
from syncbeat_server.ops.metrics import Metrics
from syncbeat_server.ops.metrics.rpc import CALL_SECONDS
from syncbeat_server.ops.settings.server import Settings
from syncbeat_server.status.figures_entry import put_figure
from syncbeat_server.status.model import FigureRule, Goals, Series, Standing, Sums
from syncbeat_server.status.policy.objectives import call_amounts, push_amounts
from syncbeat_server.status.policy.slo_windows import SloTimes
from syncbeat_server.status.slo_counter import SloCounter
from syncbeat_server.status.slo_report import SloReporter, SloRule
from syncbeat_server.storage.postgres.database import Database, open_database
from syncbeat_server.storage.postgres.roles import require_restricted_login
from syncbeat_server.storage.schema_check import require_current_schema
from syncbeat_server.sync.tuning.app_counters import AppCounters


@dataclass(frozen=True)
class SloFeature:
    """Objectives of one process: `counter` is what its parts add to."""

    counter: SloCounter
    reporter: SloReporter
    metrics: Metrics

    async def run(self) -> None:
        """Show in the metrics how the objectives stand, for ever."""
        await self.reporter.run(self._show)

    def _show(self, stands: Standing) -> None:
        self.metrics.slo.stand(stands.budgets, stands.burn_rates)


def slo_rule(settings: Settings) -> SloRule:
    """Return the objectives, from the settings."""
    goals = Goals(
        availability=settings.slo_availability,
        errors=settings.slo_errors,
        hint_p95_s=settings.slo_hint_p95_s,
        call_p95_s=settings.slo_call_p95_s,
        push_accepted=settings.slo_push_accepted,
        staleness=settings.slo_staleness,
        least_events=settings.slo_least_events,
    )
    return SloRule(
        goals, SloTimes(settings.slo_window_scale), _figures(settings), settings.slo_figure_age_s, CALL_SECONDS
    )


def wire_slo(settings: Settings, database: Database, clock: Clock, metrics: Metrics) -> SloFeature:
    """Create the objectives of a process, and count what every role has: the pool, PostgreSQL and deliveries."""
    rule = slo_rule(settings)
    counter = SloCounter(database, clock, rule.times)

    def pool() -> Sums:
        now = database.pool_status
        return {Series.POOL: (float(now.in_use), float(now.size))}

    def statements() -> Sums:
        figures = database.pool_figures
        return {Series.DATABASE: (float(figures.requests), figures.seconds)}

    counter.add_samples(pool)
    counter.add_counters(statements)
    counter.add_counters(lambda: push_amounts(metrics.push.outcomes))
    return SloFeature(counter, SloReporter(counter, database, clock, rule), metrics)


def count_calls(feature: SloFeature) -> None:
    """Count the calls of a process that serves them, and the CPU that it takes from now on."""
    rpc, began_s = feature.metrics.rpc, time.process_time()

    def calls() -> Sums:
        counted = call_amounts(rpc.counts())
        ended = counted[Series.CALLS][0]
        return {**counted, Series.CPU: (time.process_time() - began_s, ended)}

    feature.counter.add_counters(calls)


def count_staleness(feature: SloFeature, apps: Callable[[], Mapping[str, AppCounters]]) -> None:
    """Count the changes that devices heard of, of all apps together, and those that were late by an app's target."""

    def changes() -> Sums:
        sums = [counters.sums() for counters in apps().values()]
        late = sum(one.late for one in sums)
        return {Series.STALENESS: (sum(one.changes for one in sums) - late, late)}

    feature.counter.add_counters(changes)


@asynccontextmanager
async def open_figures(settings: Settings, database_url: str) -> AsyncIterator[Callable[[str, float], Awaitable[None]]]:
    """Yield what enters a figure from outside, by name and value, for one run of a command.

    Raises:
        ConfigurationError: the login is not the service's, or no setting names the figure.
        DependencyDown: PostgreSQL does not answer.
        MigrationNeeded: it is of another version.
    """
    async with open_database(database_url, size=1, name="syncbeat-slo") as database:
        async with database.connection() as conn:
            await require_restricted_login(conn)
            await require_current_schema(conn)
        yield partial(put_figure, database, _figures(settings))


def _figures(settings: Settings) -> tuple[FigureRule, ...]:
    return tuple(FigureRule(one.name, one.warn, one.rollback) for one in settings.slo_figures)
