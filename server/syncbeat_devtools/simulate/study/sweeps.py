"""Sweeps: requests against staleness for each policy, and the hybrid under worse and worse conditions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from syncbeat_devtools.simulate.engine.jobs import JobRunner
from syncbeat_devtools.simulate.engine.tally import Tally, sum_tallies
from syncbeat_devtools.simulate.policies.bounds import merge_bounds
from syncbeat_devtools.simulate.policies.settings import PolicyRow, Settings
from syncbeat_devtools.simulate.study.solver import LATENESS_S, Days, run, signalled_bounds, solve, with_measured_misses
from syncbeat_server.sync.policy.interval import Bounds

_MEANS_S = (7.5, 15.0, 30.0, 60.0)
_BOUND_MEANS_S = (3.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0, 80.0)
_MULTIPLIERS = (0.5, 0.7, 1.0, 1.5, 2.5)
_CAP_OVER_MEAN = 5.0
_CURVES = (PolicyRow.FIXED, PolicyRow.TIERS, PolicyRow.BACKOFF, PolicyRow.EWMA, PolicyRow.PULL)

SWEPT: dict[str, tuple[str, tuple[float, ...]]] = {
    "reach": ("share of devices that pushes reach", (0.5, 0.7, 0.85, 0.95, 1.0)),
    "loss": ("share of pushes lost, each by its own chance", (0.0, 0.02, 0.05, 0.1, 0.2)),
    "dark": ("share of the time in spells of half an hour that lose all", (0.0, 0.01, 0.025, 0.05, 0.1)),
    "floor_s": ("seconds between polls in the background (Doze, iOS)", (0.0, 60.0, 300.0, 900.0, 1800.0)),
    "watched": ("share of sessions with the app in the foreground", (0.0, 0.25, 0.5, 0.75, 1.0)),
    "ios": ("share of iOS: 3 pushes an hour, none sent again", (0.0, 0.15, 0.3, 0.5, 0.7)),
}


def tradeoff_curves(days: Days, settings: Settings, runner: JobRunner) -> dict[str, list[dict[str, float]]]:
    """Return points of mean staleness and requests per day for each policy; for a fleet also its ceiling and bounds."""
    found: dict[str, list[dict[str, float]]] = {}
    for row in (*_CURVES, PolicyRow.CEILING) if days.has_true_rates else _CURVES:
        found[row.value] = []
        for mean_s in _MEANS_S:
            at = replace(settings, bounds=Bounds(settings.bounds.floor_s, _CAP_OVER_MEAN * mean_s))
            found[row.value].append(_point(days, solve(row, days, at, mean_s, runner).tallies))
    found[PolicyRow.HYBRID.value] = [
        _point(days, _run_learned(days, replace(settings, multiplier=multiplier, lateness_s=LATENESS_S), runner))
        for multiplier in _MULTIPLIERS
    ]
    if not days.has_true_rates:
        return found
    polled = merge_bounds(days.bounds.values())
    signalled = merge_bounds(signalled_bounds(days, settings.conditions).values())
    scale = days.fleet / sum(sample.size for sample in days.samples)
    for name, bound in (("bound of polling", polled), ("bound with signals", signalled)):
        found[name] = [{"mean_s": mean, "requests": bound.least_requests(mean) * scale} for mean in _BOUND_MEANS_S]
    return found


def sweep_assumptions(days: Days, settings: Settings, runner: JobRunner) -> dict[str, Any]:
    """Run the hybrid at one price while each of its assumptions changes, measuring anew the pushes that are missed."""
    found: dict[str, Any] = {}
    for name, (meaning, values) in SWEPT.items():
        points = []
        for value in values:
            changed: dict[str, Any] = (
                {"android_floor_s": value, "ios_floor_s": value} if name == "floor_s" else {name: value}
            )
            at = replace(settings, conditions=replace(settings.conditions, **changed))
            points.append({"value": value, **_point(days, _run_learned(days, at, runner))})
        found[name] = {"meaning": meaning, "points": points}
    return found


def _run_learned(days: Days, settings: Settings, runner: JobRunner) -> dict[int, Tally]:
    """Run the hybrid after a day in which it has measured the share of missed pushes."""
    first = run(PolicyRow.HYBRID, days, settings, runner, "learning")
    return run(PolicyRow.HYBRID, days, with_measured_misses(settings, sum_tallies(first.values())), runner)


def _point(days: Days, tallies: dict[int, Tally]) -> dict[str, float]:
    whole = sum_tallies(tallies.values())
    p95, p99 = whole.quantiles_s(0.95, 0.99)
    return {
        "mean_s": round(whole.mean_s, 2),
        "p95_s": round(p95, 1),
        "p99_s": round(p99, 1),
        "requests": round(whole.per_day(whole.requests, days.fleet)),
        "wakeups": round(whole.wakeups / whole.devices, 1),
    }
