"""Derives what the objectives come to from counts: shares, error budgets and burn rates. Pure.

An objective says which share of events is to go well. The rest is its error budget, and the burn rate is how many times
faster than it lasts the budget is spent: 1 spends it in exactly 30 days (Google, "The Site Reliability Workbook",
chapter 5, "Alerting on SLOs").
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from syncbeat_server.status.model import (
    Amounts,
    Counted,
    Goals,
    Objective,
    ObjectiveStatus,
    Series,
    Standing,
    Sums,
    Workload,
)
from syncbeat_server.status.policy.method_figures import OUR_FAULT, Counts, quantile
from syncbeat_server.status.policy.slo_windows import BURN_PAIRS, Span

LATENCY_SHARE = 0.95
"""The share of calls that the latency objectives are about: they are told as p95."""
UNANSWERED = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED"})
"""The codes of calls that got no answer in time."""
STREAMS = frozenset({"syncbeat.v1.SyncService/WatchHints", "syncbeat.v1.PushService/WatchDeliveries"})
"""The methods whose calls last as long as the caller wants: their duration is no latency."""
ACCEPTED = "SENT"
"""The outcome of an attempt that the provider accepted."""
NOT_ELIGIBLE = frozenset({"UNREGISTERED", "WRONG_SENDER", "REJECTED"})
"""The outcomes of attempts that no provider would accept: of dead tokens, and of messages that break its rules."""

_HINT = "syncbeat.v1.SyncService/GetHint"
_SERVICE, _SYNC = "syncbeat.v1.", "syncbeat.v1.SyncService/"


def call_amounts(methods: Mapping[str, Counts]) -> dict[str, Amounts]:
    """Return the counters of calls by series, from those of the metrics."""
    ours = {name: counts for name, counts in methods.items() if name.startswith(_SERVICE)}
    sync = [counts for name, counts in ours.items() if name.startswith(_SYNC)]
    hints = methods.get(_HINT)
    unavailable = _of(ours.values(), UNANSWERED) + sum(counts.overloaded for counts in ours.values())
    return {
        Series.CALLS: (_calls(ours.values()), unavailable, _of(ours.values(), OUR_FAULT)),
        Series.SYNC_CALLS: (_calls(sync), _of(sync, OUR_FAULT)),
        Series.HINT_SECONDS: () if hints is None else tuple(map(float, hints.buckets)),
        Series.CALL_SECONDS: _buckets([counts for name, counts in ours.items() if name not in STREAMS]),
    }


def push_amounts(outcomes: Mapping[str, float]) -> dict[str, Amounts]:
    """Return the counter of attempts, from those by outcome."""
    accepted = outcomes.get(ACCEPTED, 0.0)
    return {Series.PUSH: (accepted, sum(n for name, n in outcomes.items() if name not in NOT_ELIGIBLE) - accepted)}


def within(bounds: Sequence[float], buckets: Sequence[float], limit_s: float) -> float:
    """Return how many of the calls took `limit_s` at most, interpolated within its bucket.

    Calls above the last bound took longer than any limit.
    """
    found, below = 0.0, 0.0
    for bound, count in zip(bounds, buckets, strict=False):
        if limit_s >= bound:
            found += count
        else:
            return found + count * max(0.0, limit_s - below) / (bound - below)
        below = bound
    return found


def counted(objective: Objective, sums: Sums, goals: Goals, bounds: Sequence[float]) -> Counted:
    """Return the events of an objective that went well, and those that did not."""
    match objective:
        case Objective.AVAILABILITY:
            return _part(sums, Series.CALLS, 1)
        case Objective.ERRORS:
            return _part(sums, Series.CALLS, 2)
        case Objective.HINT_LATENCY:
            return _timely(sums.get(Series.HINT_SECONDS, ()), bounds, goals.hint_p95_s)
        case Objective.CALL_LATENCY:
            return _timely(sums.get(Series.CALL_SECONDS, ()), bounds, goals.call_p95_s)
        case Objective.PUSH_ACCEPTED:
            return Counted(amount(sums, Series.PUSH, 0), amount(sums, Series.PUSH, 1))
        case Objective.STALENESS:
            return Counted(amount(sums, Series.STALENESS, 0), amount(sums, Series.STALENESS, 1))


def goal_of(objective: Objective, goals: Goals) -> float:
    """Return the share of events that is to go well."""
    match objective:
        case Objective.AVAILABILITY:
            return goals.availability
        case Objective.ERRORS:
            return 1.0 - goals.errors
        case Objective.HINT_LATENCY | Objective.CALL_LATENCY:
            return LATENCY_SHARE
        case Objective.PUSH_ACCEPTED:
            return goals.push_accepted
        case Objective.STALENESS:
            return goals.staleness


def burn_rate(events: Counted, goal: float) -> float:
    """Return how many times faster than it lasts an error budget is spent; 0 without events."""
    return events.bad_share / (1.0 - goal)


def objective_status(objective: Objective, sums: Sums, goals: Goals, bounds: Sequence[float]) -> ObjectiveStatus:
    """Return what an objective came to over the span of its budget. Without events the budget is whole."""
    events, goal = counted(objective, sums, goals, bounds), goal_of(objective, goals)
    return ObjectiveStatus(objective, goal, 1.0 - events.bad_share, 1.0 - burn_rate(events, goal), events.events)


def standing(spans: Mapping[Span, Sums], goals: Goals, bounds: Sequence[float]) -> Standing:
    """Return how the objectives stand: their budgets, and their burn rates over each window of a pair."""
    least = goals.least_events
    statuses = tuple(objective_status(one, spans[Span.BUDGET], goals, bounds) for one in Objective)
    budgets = {one.name: one.budget_left if one.events >= least else 1.0 for one in statuses}
    rates = {}
    for one in Objective:
        # Six hours are the short window of one pair and the long window of the next, by which they are judged.
        for pair in reversed(BURN_PAIRS):
            enough = counted(one, spans[pair.long], goals, bounds).events >= least
            for span in (pair.long, pair.short):
                rate = burn_rate(counted(one, spans[span], goals, bounds), goal_of(one, goals))
                rates[one.value, span.value] = rate if enough else 0.0
    return Standing(statuses, budgets, rates)


def workload(sums: Sums, bounds: Sequence[float]) -> Workload:
    """Return what reports are compared by."""
    hints, calls = sums.get(Series.HINT_SECONDS, ()), sums.get(Series.CALL_SECONDS, ())
    cpu_calls = amount(sums, Series.CPU, 1)
    return Workload(
        calls=amount(sums, Series.CALLS, 0),
        errors=amount(sums, Series.CALLS, 2),
        hints=sum(hints),
        hint_p95_s=quantile(bounds, hints, LATENCY_SHARE),
        call_p95_s=quantile(bounds, calls, LATENCY_SHARE),
        cpu_calls=cpu_calls,
        cpu_s_per_call=amount(sums, Series.CPU, 0) / cpu_calls if cpu_calls else 0.0,
    )


def amount(sums: Sums, series: Series, index: int) -> float:
    """Return one amount of a series; 0 if nothing was counted."""
    amounts = sums.get(series, ())
    return amounts[index] if index < len(amounts) else 0.0


def _part(sums: Sums, series: Series, bad_index: int) -> Counted:
    """Return all events but those that are counted as bad. These may be more: one is counted before its call ends."""
    bad = amount(sums, series, bad_index)
    return Counted(max(0.0, amount(sums, series, 0) - bad), bad)


def _timely(buckets: Amounts, bounds: Sequence[float], limit_s: float) -> Counted:
    good = within(bounds, buckets, limit_s)
    return Counted(good, max(0.0, sum(buckets) - good))


def _calls(methods: Iterable[Counts]) -> float:
    return float(sum(sum(counts.buckets) for counts in methods))


def _of(methods: Iterable[Counts], codes: frozenset[str]) -> float:
    """Count the calls that ended with these codes, without those that their callers brought about, in every set."""
    return float(
        sum(sum(count for code, count in counts.codes.items() if code in codes) - counts.excused for counts in methods)
    )


def _buckets(methods: Sequence[Counts]) -> Amounts:
    return tuple(map(float, map(sum, zip(*(counts.buckets for counts in methods), strict=True))))
