"""How the figures move: requests against staleness for each policy, and the hybrid as pushes and systems get worse."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from syncbeat_devtools.simulate.engine.jobs import Crew
from syncbeat_devtools.simulate.engine.tally import Tally, summed
from syncbeat_devtools.simulate.policies.bounds import merged
from syncbeat_devtools.simulate.policies.settings import PolicyRow, Settings
from syncbeat_devtools.simulate.study.solver import LATENESS_S, Days, measured_misses, run, signalled_bounds, solved
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


def curves(days: Days, settings: Settings, crew: Crew) -> dict[str, list[dict[str, float]]]:
    """Points of mean staleness and requests a day, of each policy; but of a log, of the ceiling and the bounds too."""
    found: dict[str, list[dict[str, float]]] = {}
    for row in (*_CURVES, PolicyRow.CEILING) if days.known else _CURVES:
        found[row.value] = []
        for mean_s in _MEANS_S:
            at = replace(settings, bounds=Bounds(settings.bounds.floor_s, _CAP_OVER_MEAN * mean_s))
            found[row.value].append(_point(days, solved(row, days, at, mean_s, crew).tallies))
    found[PolicyRow.HYBRID.value] = [
        _point(days, _settled(days, replace(settings, multiplier=multiplier, lateness_s=LATENESS_S), crew))
        for multiplier in _MULTIPLIERS
    ]
    if not days.known:
        return found
    pulled, signalled = merged(days.bounds.values()), merged(signalled_bounds(days, settings.waking).values())
    scale = days.fleet / sum(sample.size for sample in days.samples)
    for name, bound in (("bound of polling", pulled), ("bound with signals", signalled)):
        found[name] = [{"mean_s": mean, "requests": bound.least_requests(mean) * scale} for mean in _BOUND_MEANS_S]
    return found


def sweeps(days: Days, settings: Settings, crew: Crew) -> dict[str, Any]:
    """The hybrid at one price as each of its assumptions changes, and what pushes miss is learned anew."""
    found: dict[str, Any] = {}
    for name, (meaning, values) in SWEPT.items():
        points = []
        for value in values:
            changed: dict[str, Any] = (
                {"android_floor_s": value, "ios_floor_s": value} if name == "floor_s" else {name: value}
            )
            at = replace(settings, waking=replace(settings.waking, **changed))
            points.append({"value": value, **_point(days, _settled(days, at, crew))})
        found[name] = {"meaning": meaning, "points": points}
    return found


def _settled(days: Days, settings: Settings, crew: Crew) -> dict[int, Tally]:
    """The hybrid after a day in which it has measured what pushes miss."""
    first = run(PolicyRow.HYBRID, days, settings, crew, "learning")
    return run(PolicyRow.HYBRID, days, measured_misses(settings, summed(first.values())), crew)


def _point(days: Days, tallies: dict[int, Tally]) -> dict[str, float]:
    whole = summed(tallies.values())
    p95, p99 = whole.quantiles_s(0.95, 0.99)
    return {
        "mean_s": round(whole.mean_s, 2),
        "p95_s": round(p95, 1),
        "p99_s": round(p99, 1),
        "requests": round(whole.per_day(whole.requests, days.fleet)),
        "wakeups": round(whole.wakeups / whole.devices, 1),
    }
