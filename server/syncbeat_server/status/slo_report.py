"""Judges the deployment by its objectives: by what all processes wrote, and what this one has not written yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from syncbeat_server.clock import Clock
from syncbeat_server.status.asked import asked
from syncbeat_server.status.model import Amounts, Figure, FigureRule, Goals, Objective, SloReport, Standing
from syncbeat_server.status.policy.objectives import objective_status, standing, workload
from syncbeat_server.status.policy.slo_triggers import Evidence, triggers, worst
from syncbeat_server.status.policy.slo_windows import SloTimes, Span, Window, total
from syncbeat_server.status.slo_counter import SloCounter
from syncbeat_server.status.store import slo_counts, slo_figures
from syncbeat_server.storage.postgres.database import Database

MOST_FIGURES = 16
"""Of those from outside that settings may name."""

_REMEMBERED_S = 2.0  # of how the objectives stand: a month of buckets is added up for it


@dataclass(frozen=True)
class SloRule:
    """Objectives, times, and the figures from outside that count, for `figure_age_s` after each was entered."""

    goals: Goals
    times: SloTimes
    figures: tuple[FigureRule, ...]
    figure_age_s: float
    bounds: tuple[float, ...]
    """Upper bounds of the buckets in which calls are counted by their duration."""


@dataclass(frozen=True)
class _Found:
    """Counts of windows, how far back they reach in seconds, and figures from outside."""

    sums: Sequence[dict[str, Amounts]]
    since_s: float
    figures: Sequence[Figure] = ()


class SloReporter:
    """Answers how the objectives stand."""

    def __init__(self, counter: SloCounter, database: Database, clock: Clock, rule: SloRule) -> None:
        self._counter = counter
        self._database = database
        self._clock = clock
        self._rule = rule
        self._standing: tuple[float, Standing] | None = None

    async def report(self, window_s: float | None = None) -> SloReport:
        """Return the report over a window in seconds; None stands for an hour, scaled.

        While PostgreSQL does not answer, it is about what this process has not written yet, and comes to ROLLBACK.
        """
        rule, times = self._rule, self._rule.times
        asked_s = times.seconds(Span.HOUR) if window_s is None else window_s
        windows = [*map(times.window, Span), times.window_of(asked_s)]
        answered = await asked(self._read(windows, with_figures=True))
        found = self._own(windows) if answered is None else answered
        spans = dict(zip(Span, found.sums, strict=False))
        reached_s = min(asked_s, found.since_s)
        evidence = Evidence(spans, found.sums[-1], reached_s, found.figures, database_down=answered is None)
        judged = triggers(evidence, rule.goals, rule.figures, times, rule.bounds)
        budgets = [objective_status(one, spans[Span.BUDGET], rule.goals, rule.bounds) for one in Objective]
        return SloReport(
            verdict=worst(judged),
            triggers=judged,
            window_s=reached_s,
            workload=workload(found.sums[-1], rule.bounds),
            objectives=() if answered is None else tuple(budgets),
            made_at=self._clock.now(),
        )

    async def standing(self) -> Standing | None:
        """Return how the objectives stand, two seconds ago at most; None if PostgreSQL does not answer."""
        now_s = self._clock.monotonic()
        if self._standing is not None and now_s - self._standing[0] < _REMEMBERED_S:
            return self._standing[1]
        found = await asked(self._read([self._rule.times.window(span) for span in Span]))
        if found is None:
            return None
        stands = standing(dict(zip(Span, found.sums, strict=True)), self._rule.goals, self._rule.bounds)
        self._standing = now_s, stands
        return stands

    async def run(self, on_standing: Callable[[Standing], None]) -> None:
        """Tell how the objectives stand as often as a short bucket ends, for ever."""
        while True:
            stands = await self.standing()
            if stands is not None:
                on_standing(stands)
            await self._clock.sleep(float(self._rule.times.short_s))

    async def _read(self, windows: Sequence[Window], *, with_figures: bool = False) -> _Found:
        async with self._counter.lock:
            async with self._database.connection() as conn:
                sums = await slo_counts.sums(conn, windows)
                since_s = await slo_counts.counted_since_s(conn, windows[-1].width_s)
                names = [one.name for one in self._rule.figures] if with_figures else []
                figures = await slo_figures.read(conn, self._rule.figure_age_s, names) if names else []
            own = self._own(windows)
        both = [total(theirs, mine) for theirs, mine in zip(sums, own.sums, strict=True)]
        return _Found(both, max(since_s, own.since_s), figures)

    def _own(self, windows: Sequence[Window]) -> _Found:
        """Return what this process has not written yet."""
        self._counter.collect()
        unwritten = self._counter.unwritten()
        sums: list[dict[str, Amounts]] = [{} for _ in windows]
        for index, window in enumerate(windows):
            for age_s, counts in unwritten:
                if window.holds(age_s):
                    sums[index] = total(sums[index], counts)
        return _Found(sums, max((age_s for age_s, _ in unwritten), default=0.0))
