"""Judges a run: the last window, which may take a roll-out back, and the whole of it. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from syncbeat_devtools.soak.measure.histogram import Histogram
from syncbeat_devtools.soak.measure.series import Series, Totals
from syncbeat_devtools.soak.plan import Operation
from syncbeat_devtools.soak.verdict.objectives import Objectives, Trigger, Verdict
from syncbeat_devtools.soak.verdict.trend import slope

_WINDOWS_A_RUN = 48
"""A window is an hour of 48, as the rule "more than 2 % errors for an hour" has it, and less of a shorter run."""
_LEAST_WINDOW_S, _MOST_WINDOW_S = 10.0, 3_600.0
_WARM_UP_SHARE, _MOST_WARM_UP_S = 0.1, 1_800.0
_LEAST_TREND_S = 1_500.0
"""The span, in seconds, from which on a slope is judged: below, an allocator's arena is as large as an hour's leak."""
_NOT_ELIGIBLE = frozenset({"SUPPRESSED", "CANCELLED"})
_ACCEPTED = frozenset({"SENT", "RECEIVED", "OPENED"})


def window_s(duration_s: float) -> float:
    """Return the length of the window of a run, in seconds."""
    return min(_MOST_WINDOW_S, max(_LEAST_WINDOW_S, duration_s / _WINDOWS_A_RUN))


def worst(triggers: Sequence[Trigger]) -> Verdict:
    """Return the worst verdict of all."""
    return max((one.verdict for one in triggers), default=Verdict.OK)


def judge_window(series: Series, objectives: Objectives, duration_s: float) -> list[Trigger]:
    """Return the triggers of the last window."""
    calls, errors, _ = series.last_counts(window_s(duration_s))
    ratio = errors / calls if calls else 0.0
    return [Trigger("window_error_ratio", ratio, objectives.errors, objectives.rollback_errors)]


def judge_run(series: Series, totals: Totals, objectives: Objectives, duration_s: float) -> list[Trigger]:
    """Return the triggers of the whole run. They warn: what takes a roll-out back goes on in the last window."""
    tallies = totals.tallies
    calls = sum(one.calls for one in tallies.values())
    if not calls:
        return [Trigger("no_calls", 1.0, 0.0, unit="")]
    faults = sum(one.faults for one in tallies.values())
    errors = sum(one.errors for one in tallies.values())
    found = [
        Trigger("unavailable_ratio", faults / calls, 1 - objectives.availability),
        Trigger("error_ratio", errors / calls, objectives.errors),
    ]
    p95s = {operation: p95 for operation, one in tallies.items() if (p95 := one.times.quantile(0.95)) is not None}
    if Operation.POLL in p95s:
        found.append(Trigger("hint_p95", p95s[Operation.POLL], objectives.hint_p95_s, unit="s"))
    found += [
        Trigger(f"{operation}_p95", p95, objectives.p95_s, unit="s")
        for operation, p95 in sorted(p95s.items())
        if operation is not Operation.POLL
    ]
    found += _push(totals, objectives) + _staleness(totals.poll_staleness, objectives)
    grows = rss_slope(series, duration_s)
    if grows is not None:
        found.append(Trigger("rss_slope", grows, objectives.rss_mib_per_hour, unit="MiB/h"))
    return found


def push_accepted(totals: Totals) -> float | None:
    """Return the share of eligible deliveries that the provider took; None without any."""
    states = totals.push_states
    eligible = sum(count for state, count in states.items() if state not in _NOT_ELIGIBLE)
    return sum(states[state] for state in _ACCEPTED) / eligible if eligible else None


def _push(totals: Totals, objectives: Objectives) -> list[Trigger]:
    accepted = push_accepted(totals)
    if accepted is None:
        return []
    return [Trigger("push_not_accepted_ratio", 1 - accepted, 1 - objectives.push_accepted)]


def _staleness(ages: Histogram, objectives: Objectives) -> list[Trigger]:
    mean = ages.mean()
    return [] if mean is None else [Trigger("poll_staleness_mean", mean, objectives.staleness_s, unit="s")]


def rss_samples(series: Series, duration_s: float) -> list[tuple[float, float]]:
    """Return the server's memory after the warm-up, in hours and MiB."""
    warm_s = min(_MOST_WARM_UP_S, _WARM_UP_SHARE * duration_s)
    return [
        (at_s / 3_600, point.rss_octets / (1 << 20))
        for at_s, point in series.timed()
        if point.rss_octets is not None and at_s >= warm_s
    ]


def rss_slope(series: Series, duration_s: float) -> float | None:
    """Return how fast the server's memory grows, in MiB an hour; None if it was not read for long enough to tell."""
    samples = rss_samples(series, duration_s)
    if not samples or (samples[-1][0] - samples[0][0]) * 3_600 < _LEAST_TREND_S:
        return None
    return slope(samples)
