"""Compares policies on days of a log, each after days of history, at one mean staleness."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from syncbeat_devtools.simulate.engine.jobs import JobRunner
from syncbeat_devtools.simulate.engine.log_jobs import LearnedDay, learn_day
from syncbeat_devtools.simulate.engine.log_replay import Plays, enough_plays
from syncbeat_devtools.simulate.fleet.devices import DAY
from syncbeat_devtools.simulate.fleet.log_days import DayKey, check_day, log_lines
from syncbeat_devtools.simulate.policies.clairvoyant import least_requests
from syncbeat_devtools.simulate.policies.hindsight import count_circumstances, make_table
from syncbeat_devtools.simulate.policies.settings import PolicyRow, Settings
from syncbeat_devtools.simulate.report.log_rows import make_log_row
from syncbeat_devtools.simulate.study.bootstrap import DayDraws
from syncbeat_devtools.simulate.study.log_solver import Group, LogOutcome, solve_log
from syncbeat_devtools.simulate.study.rival_tuning import tune_rivals, tuning_days
from syncbeat_server.defaults import LONGEST_POLL_S
from syncbeat_server.sync.policy.interval import Bounds

RIVALS = (
    PolicyRow.FIXED,
    PolicyRow.EWMA,
    PolicyRow.TUNED_EWMA,
    PolicyRow.AFTER_ACTIVITY,
    PolicyRow.BY_SCREEN,
)

CLAIRVOYANT = "each commit known beforehand"

_CURVES = (*RIVALS, PolicyRow.PULL, PolicyRow.HINDSIGHT)
_MEANS_S = (7.5, 15.0, 30.0, 60.0)
_CAPS_IN_TARGETS = (4.0, 5.0, 10.0, 20.0, 60.0, 240.0)


@dataclass(frozen=True, slots=True)
class LogPlan:
    """The days of a log to measure. `apart`: each has its own multiplier, as if it were measured alone."""

    keys: tuple[DayKey, ...]
    apart: bool
    seeds: tuple[int, ...]
    most_devices: int | None = None
    """The devices of a day that are played at the most, taken evenly from all."""
    has_curves: bool = False
    has_caps: bool = False
    """Compare at other means too, and with other longest intervals."""


def study_log(plan: LogPlan, settings: Settings, target_s: float, runner: JobRunner) -> dict[str, Any]:
    """Compare all policies that only poll.

    Raises:
        ConfigurationError: a day has no change to see.
    """
    for key in plan.keys:
        check_day(key)
    learned = [_thinned(day, plan) for day in runner.map(learn_day, plan.keys, "learning from history")]
    groups = _groups(plan, learned, settings, target_s, runner)
    fewest = min(sum(_changes(day) for day in group.days) for group in groups)
    plays = enough_plays(plan.seeds, fewest)
    outcomes = {
        row: solve_log(row, groups, settings, target_s, plays, runner)
        for row in (*RIVALS, PolicyRow.PULL, PolicyRow.HINDSIGHT)
    }
    bounds = bound_by_day(learned, target_s, runner)
    scale = sum(day.size for day in learned) / sum(len(day.played()) for day in learned)
    draws = DayDraws(len(plan.keys))
    best = best_rival(outcomes, target_s)
    rows = []
    for row, outcome in outcomes.items():
        others = [] if row is not PolicyRow.PULL else [outcomes[rival] for rival in RIVALS]
        rows.append(make_log_row(outcome, target_s, sum(bounds) * scale, draws, plays.total / scale, others))
    found = {
        "log": plan.keys[0].path.name,
        "history_days": plan.keys[0].history_days,
        "devices_played_share": round(1.0 / scale, 4),
        "days": [
            {
                "start": day.key.start,
                "devices": day.size,
                "changes": round(_changes(day) * scale),
                "prior": day.prior._asdict(),
            }
            for day in learned
        ],
        "each_day_alone": plan.apart,
        "seeds": list(plan.seeds),
        "plays": plays.total,
        "target_mean_s": target_s,
        "bounds_s": list(settings.bounds),
        "constants": [
            {
                "from": group.days[0].key.start,
                "rivals": {row.value: list(found) for row, found in group.constants.items()},
            }
            for group in groups
        ],
        "best_rival": best.row.value,
        "clairvoyant_requests_per_day": round(sum(bounds) * scale / len(bounds)),
        "policies": rows,
    }
    if plan.has_caps:
        found["caps"] = costs_of_caps(groups, plays, settings, target_s, runner)
    if plan.has_curves:
        found["curves"] = tradeoff_of_log(groups, plays, settings, target_s, runner)
    return found


def costs_of_caps(
    groups: Sequence[Group], plays: Plays, settings: Settings, target_s: float, runner: JobRunner
) -> list[dict[str, float]]:
    """Return for longest intervals up to four hours what `adaptive-pull` takes at the target. Of many a part is played.

    `requests_over` is relative to the longest of them.
    """
    found: list[dict[str, float]] = []
    floor_s, _ = settings.bounds
    caps = sorted(
        {*(times * target_s for times in _CAPS_IN_TARGETS if times * target_s < LONGEST_POLL_S), LONGEST_POLL_S}
    )
    for cap_s in reversed(caps):
        at = replace(settings, bounds=Bounds(floor_s, cap_s))
        whole = solve_log(PolicyRow.PULL, groups, at, target_s, plays, runner, roughly=True).whole
        p95, p99 = whole.quantiles_s(0.95, 0.99)
        requests = whole.requests * whole.mean_s / target_s / whole.devices
        found.append(
            {
                "cap_s": cap_s,
                "requests_per_device_day": round(requests, 1),
                "requests_over": round(requests / found[0]["requests_per_device_day"], 3) if found else 1.0,
                "p95_s": round(p95, 1),
                "p99_s": round(p99, 1),
                "longest_s": round(max(whole.delays, default=0.0)),
                "capped_share": round(whole.capped / max(1, whole.polls), 4),
            }
        )
    return found[::-1]


def tradeoff_of_log(
    groups: Sequence[Group], plays: Plays, settings: Settings, target_s: float, runner: JobRunner
) -> dict[str, list[dict[str, float]]]:
    """Return points of mean staleness and requests per day, and the bound; the longest interval goes with the mean.

    The constants of rivals stay those of the target. Of many devices a part is played.
    """
    found: dict[str, list[dict[str, float]]] = {row.value: [] for row in _CURVES}
    found[CLAIRVOYANT] = []
    days = [day for group in groups for day in group.days]
    devices = sum(day.size for day in days) / len(days)
    scale = sum(day.size for day in days) / sum(len(day.played()) for day in days)
    floor_s, cap_s = settings.bounds
    for mean_s in _MEANS_S:
        cap = min(LONGEST_POLL_S, cap_s * max(1.0, mean_s / target_s))
        at = replace(settings, bounds=Bounds(floor_s, cap))
        for row in _CURVES:
            whole = solve_log(row, groups, at, mean_s, plays, runner, roughly=True).whole
            found[row.value].append(
                {"mean_s": round(whole.mean_s, 2), "requests": round(whole.per_day(whole.requests, 1) * devices)}
            )
        bound = sum(bound_by_day(days, mean_s, runner)) * scale / len(days)
        found[CLAIRVOYANT].append({"mean_s": mean_s, "requests": round(bound)})
    return found


def best_rival(outcomes: dict[PolicyRow, LogOutcome], target_s: float) -> LogOutcome:
    """Return the rival with the fewest requests at the target."""
    return min((outcomes[row] for row in RIVALS), key=lambda one: one.whole.requests * one.whole.mean_s / target_s)


def bound_by_day(days: Sequence[LearnedDay], target_s: float, runner: JobRunner) -> list[float]:
    """Return for each day the requests that a policy needs at the least which knows each commit before it happens."""
    return runner.map(_bound_of_day, [(day, target_s) for day in days], "bounds")


def _bound_of_day(asked: tuple[LearnedDay, float]) -> float:
    day, target_s = asked
    return least_requests([device.changes for device in day.played()], target_s)


def _thinned(day: LearnedDay, plan: LogPlan) -> LearnedDay:
    if plan.most_devices is None:
        return day
    return day._replace(step=max(1, math.ceil(day.size / plan.most_devices)))


def _groups(
    plan: LogPlan, learned: Sequence[LearnedDay], settings: Settings, target_s: float, runner: JobRunner
) -> list[Group]:
    log_start = log_lines(plan.keys[0].path, plan.keys[0].form)[0].at
    # Days that follow each other share the constants: those before them would be tuned on what is measured.
    runs = _consecutive(learned) if plan.apart else [sorted(learned, key=lambda day: day.key.start)]
    groups: list[Group] = []
    for run in runs:
        keys = tuning_days(run[0].key, log_start)
        before = runner.map(learn_day, keys, "learning from history")
        tuned = tune_rivals(before, settings, target_s, plan.seeds[0], runner) if before else {}
        groups += [
            Group(days, tuned, make_table(runner.map(count_circumstances, [day.key for day in days], "in hindsight")))
            for days in ([(day,) for day in run] if plan.apart else [tuple(run)])
        ]
    return groups


def _consecutive(learned: Sequence[LearnedDay]) -> list[list[LearnedDay]]:
    """Return the days in the order of time, those that follow each other together."""
    runs: list[list[LearnedDay]] = []
    for day in sorted(learned, key=lambda one: one.key.start):
        if runs and day.key.start - runs[-1][-1].key.start <= DAY:
            runs[-1].append(day)
        else:
            runs.append([day])
    return runs


def _changes(day: LearnedDay) -> int:
    return sum(len(device.changes) for device in day.played())
