"""Decides what the figures of a report come to: OK, WARN or ROLLBACK. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from syncbeat_server.status.model import (
    Counted,
    Figure,
    FigureRule,
    Goals,
    Objective,
    Series,
    Sums,
    Trigger,
    Verdict,
    Workload,
)
from syncbeat_server.status.policy.objectives import amount, burn_rate, counted, goal_of, workload
from syncbeat_server.status.policy.slo_windows import BURN_PAIRS, SloTimes, Span

NEVER = math.inf
"""A threshold that no figure passes."""
GROWTH = 1.25
"""The ratio to an earlier report from which a figure that grew is told."""

_ERRORS = 0.02  # of calls over an hour: more take a roll-out back
_POOL_WARN, _POOL_ROLLBACK = 0.8, 0.9
_DATABASE_S = 0.5
_DEADLOCKS = 10.0  # in an hour; a single one is told
_WORSE = 2.0  # times what an objective allows, of what has no other threshold
_RANK = {Verdict.OK: 0, Verdict.WARN: 1, Verdict.ROLLBACK: 2}


@dataclass(frozen=True)
class Evidence:
    """Facts that a report goes by: counts of each window and of the one that was asked for, and figures from outside.

    `database_down` says that PostgreSQL did not answer, so that the counts are those of one process since then.
    """

    spans: Mapping[Span, Sums]
    asked: Sums
    asked_s: float
    figures: Sequence[Figure] = ()
    database_down: bool = False


def worst(triggers: Iterable[Trigger]) -> Verdict:
    """Return the worst of the triggers' verdicts."""
    return max((one.verdict for one in triggers), key=_RANK.__getitem__, default=Verdict.OK)


def judged(trigger: Trigger, least_events: float = 0.0) -> Trigger:
    """Return a trigger with the verdict that its figure comes to; a share of too few events comes to OK."""
    if trigger.events is not None and trigger.events < least_events:
        return replace(trigger, verdict=Verdict.OK)
    sign = -1.0 if trigger.rollback < trigger.warn else 1.0
    if sign * trigger.value > sign * trigger.rollback:
        return replace(trigger, verdict=Verdict.ROLLBACK)
    return replace(trigger, verdict=Verdict.WARN if sign * trigger.value > sign * trigger.warn else Verdict.OK)


def triggers(
    evidence: Evidence, goals: Goals, rules: Sequence[FigureRule], times: SloTimes, bounds: Sequence[float]
) -> tuple[Trigger, ...]:
    """Return every trigger with its verdict. Of figures from outside those that were entered and have a rule."""
    found = [
        Trigger("database_down", float(evidence.database_down), 0.0, 0.0, "count"),
        *_shares(evidence, goals, bounds),
        *_latencies(evidence, goals, bounds),
        *_database(evidence, times),
        *_burns(evidence, goals, times, bounds),
        *_outside(evidence.figures, rules),
    ]
    return tuple(judged(one, goals.least_events) for one in found)


def growth_triggers(now: Workload, earlier: Workload, least_events: float) -> tuple[Trigger, ...]:
    """Return what grew against an earlier report: p95s and the CPU of a call, as ratios. Few calls say nothing."""
    pairs = (
        ("hint_p95_growth", now.hint_p95_s, earlier.hint_p95_s, min(now.hints, earlier.hints)),
        ("call_p95_growth", now.call_p95_s, earlier.call_p95_s, min(now.calls, earlier.calls)),
        ("cpu_growth", now.cpu_s_per_call, earlier.cpu_s_per_call, min(now.cpu_calls, earlier.cpu_calls)),
    )
    return tuple(
        judged(Trigger(name, new / old, GROWTH, NEVER, "ratio", events=events), least_events)
        for name, new, old, events in pairs
        if old > 0.0 and new > 0.0
    )


def _shares(evidence: Evidence, goals: Goals, bounds: Sequence[float]) -> Iterator[Trigger]:
    """Yield the shares of the window that was asked for: failures, pushes, and freshness."""
    sums, span_s = evidence.asked, evidence.asked_s
    calls = counted(Objective.ERRORS, sums, goals, bounds)
    sync = Counted(
        amount(sums, Series.SYNC_CALLS, 0) - amount(sums, Series.SYNC_CALLS, 1), amount(sums, Series.SYNC_CALLS, 1)
    )
    for name, events in (("errors", calls), ("sync_failures", sync)):
        yield Trigger(name, events.bad_share, goals.errors, max(_ERRORS, goals.errors), "ratio", span_s, events.events)
    for objective in (Objective.PUSH_ACCEPTED, Objective.STALENESS):
        events, goal = counted(objective, sums, goals, bounds), goal_of(objective, goals)
        least = 1.0 - _WORSE * (1.0 - goal)
        yield Trigger(objective, 1.0 - events.bad_share, goal, least, "ratio", span_s, events.events)


def _latencies(evidence: Evidence, goals: Goals, bounds: Sequence[float]) -> Iterator[Trigger]:
    load, span_s = workload(evidence.asked, bounds), evidence.asked_s
    timed = sum(evidence.asked.get(Series.CALL_SECONDS, ()))
    for name, value, limit, events in (
        ("hint_p95", load.hint_p95_s, goals.hint_p95_s, load.hints),
        ("call_p95", load.call_p95_s, goals.call_p95_s, timed),
    ):
        yield Trigger(name, value, limit, _WORSE * limit, "s", span_s, events)


def _database(evidence: Evidence, times: SloTimes) -> Iterator[Trigger]:
    """Yield what the pool and PostgreSQL come to; a mean, as samples and statements of all processes are added up."""
    short, long = Span.FIVE_MINUTES, Span.HALF_HOUR
    pool, sustained = (_mean(evidence.spans[span], Series.POOL, 0, 1) for span in (short, long))
    yield Trigger("pool", pool, _POOL_WARN, NEVER, "ratio", times.seconds(short))
    yield Trigger("pool_sustained", sustained, _POOL_WARN, _POOL_ROLLBACK, "ratio", times.seconds(long))
    for name, span, rollback in (("database_latency", short, NEVER), ("database_latency_sustained", long, _DATABASE_S)):
        seconds = _mean(evidence.spans[span], Series.DATABASE, 1, 0)
        yield Trigger(name, seconds, _DATABASE_S, rollback, "s", times.seconds(span))
    deadlocks = amount(evidence.asked, Series.DEADLOCKS, 0)
    yield Trigger("deadlocks", deadlocks, 0.0, _DEADLOCKS, "count", evidence.asked_s)


def _mean(sums: Sums, series: Series, part: int, whole: int) -> float:
    number = amount(sums, series, whole)
    return amount(sums, series, part) / number if number else 0.0


def _burns(evidence: Evidence, goals: Goals, times: SloTimes, bounds: Sequence[float]) -> Iterator[Trigger]:
    """Yield the burn rate of each objective and pair: the lower of its two windows, since both have to pass it."""
    for objective in Objective:
        goal = goal_of(objective, goals)
        for pair in BURN_PAIRS:
            long, short = (counted(objective, evidence.spans[span], goals, bounds) for span in (pair.long, pair.short))
            rate = min(burn_rate(long, goal), burn_rate(short, goal))
            rollback = pair.factor if pair.pages else NEVER
            window_s = times.seconds(pair.long)
            yield Trigger(f"{objective}_{pair.name}", rate, pair.factor, rollback, "burn rate", window_s, long.events)


def _outside(figures: Sequence[Figure], rules: Sequence[FigureRule]) -> Iterator[Trigger]:
    entered = {one.name: one.value for one in figures}
    for rule in rules:
        if rule.name in entered:
            yield Trigger(rule.name, entered[rule.name], rule.warn, rule.rollback, "")
