"""Variants: results with one assumption or one rule changed, everything else being equal."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from syncbeat_devtools.simulate.engine.jobs import JobRunner
from syncbeat_devtools.simulate.policies.settings import PolicyRow, Settings
from syncbeat_devtools.simulate.report.rows import make_row
from syncbeat_devtools.simulate.study.solver import Days, solve, solve_hybrid
from syncbeat_server.sync.policy.interval import Bounds

_LONG_S = 3600.0


def run_variants(days: Days, settings: Settings, target_s: float, runner: JobRunner) -> list[dict[str, Any]]:
    """Return one row for each variant."""
    short = replace(settings, bounds=Bounds(settings.bounds.floor_s, 4.0 * target_s))
    shorter = replace(settings, bounds=Bounds(settings.bounds.floor_s, 3.0 * target_s))
    uncapped = replace(settings, bounds=Bounds(1.0, _LONG_S))
    unknown = Days.of([replace(sample, history_days=0) for sample in days.samples])
    rows = [
        make_row(solve(row, those, at, target_s, runner), those, None, (), name)
        for name, row, those, at in (
            ("sqrt-ewma, no cap", PolicyRow.EWMA, days, uncapped),
            ("adaptive-pull, no cap", PolicyRow.PULL, days, uncapped),
            ("adaptive-pull, cap 4 x mean", PolicyRow.PULL, days, short),
            ("adaptive-pull, cap 3 x mean", PolicyRow.PULL, days, shorter),
            ("all parameters known, same bounds", PolicyRow.CAPPED_CEILING, days, settings),
            ("all parameters known, cap 4 x mean", PolicyRow.CAPPED_CEILING, days, short),
            ("adaptive-pull, the first day", PolicyRow.PULL, unknown, settings),
            ("adaptive-pull, presence 30 s late, 20 % unseen", PolicyRow.PRESENCE, days, settings),
            ("oracle: present and coming rates known", PolicyRow.ORACLE, days, settings),
        )
    ]
    for name, changed in (
        ("hybrid, no streams where no pushes", {"unreached_stream": False}),
        ("hybrid, half of the sessions watched", {"watched": 0.5}),
        ("hybrid, Android only", {"ios": 0.0}),
        ("hybrid, all reachable", {"reach": 1.0}),
        ("hybrid, dedupe windows of 30 s, the default of a silent trigger", {"window_s": 30.0}),
        ("hybrid, dedupe windows of 5 min", {"window_s": 300.0}),
        ("hybrid, 1 % dark, 4 % lost", {"dark": 0.01, "loss": 0.04}),
        ("hybrid, 2.5 % dark, 2.5 % lost", {"dark": 0.025, "loss": 0.025}),
    ):
        at = replace(settings, conditions=replace(settings.conditions, **changed))
        rows.append(make_row(solve_hybrid(days, at, runner), days, None, (), name))
    return rows
