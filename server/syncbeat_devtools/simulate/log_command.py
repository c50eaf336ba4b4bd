"""The part of `syncbeat-server simulate` that replays a log."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from syncbeat_devtools.simulate.engine.jobs import JobRunner, Sample
from syncbeat_devtools.simulate.engine.log_jobs import learn_day
from syncbeat_devtools.simulate.fleet.devices import DAY, DEFAULT
from syncbeat_devtools.simulate.fleet.log_days import DayKey, last_days, log_lines
from syncbeat_devtools.simulate.policies.settings import Settings
from syncbeat_devtools.simulate.report.plots import draw_curves
from syncbeat_devtools.simulate.report.rows import make_row
from syncbeat_devtools.simulate.request import Request, interval_bounds
from syncbeat_devtools.simulate.study.log_study import LogPlan, study_log
from syncbeat_devtools.simulate.study.solver import Days, solve_hybrid
from syncbeat_server.errors import ConfigurationError

_HYBRID_DEVICES = 200
"""The devices of a day by which the hybrid is simulated: the first of them by name."""


def compare_on_log(request: Request, runner: JobRunner) -> dict[str, Any]:
    """Compare all policies on the chosen days of a log, and the hybrid at its own limits.

    Raises:
        ConfigurationError: the log cannot be read, lacks the days, or has no change to see on one of them.
    """
    plan = log_plan(request)
    settings = Settings(1.0, interval_bounds(request))
    found = study_log(plan, settings, request.target_s, runner)
    first = learn_day(plan.keys[0])
    samples = [
        Sample(DEFAULT, number, min(_HYBRID_DEVICES, day["devices"]), request.history_days, key)
        for number, (key, day) in enumerate(zip(plan.keys, found["days"], strict=True))
    ]
    days = Days.of(samples)
    found["hybrid"] = [make_row(solve_hybrid(days, replace(settings, prior=first.prior), runner), days, None)]
    if request.plot is not None:
        devices = round(sum(day["devices"] for day in found["days"]) / len(found["days"]))
        draw_curves(request.plot, found["curves"], f"log {found['log']}, {devices} devices", devices)
    return found


def log_plan(request: Request) -> LogPlan:
    """Return the days to measure.

    Raises:
        ConfigurationError: the log cannot be read, or lacks the days.
    """
    path = request.trace
    if path is None:
        raise ConfigurationError("--trace: is missing")
    lines = log_lines(path, request.form)
    if request.measure_each:
        starts: tuple[float, ...] = tuple(sorted(set(request.measure_each)))
    elif request.measure_from is not None:
        starts = tuple(request.measure_from + number * DAY for number in range(request.measure_days or 1))
    else:
        starts = last_days(lines, request.measure_days or 1)
    for start in starts:
        if not lines[0].at - DAY < start < lines[-1].at:
            raise ConfigurationError(f"--measure-from, --measure-day: the log has no lines of the day from {start:.0f}")
    keys = tuple(DayKey(path, request.form, start, request.history_days) for start in starts)
    return LogPlan(
        keys, bool(request.measure_each), request.seeds, request.log_devices, request.plot is not None, request.caps
    )
