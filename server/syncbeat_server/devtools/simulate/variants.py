"""What one assumption or one rule changes, everything else being equal."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from syncbeat_server.devtools.simulate.jobs import Crew
from syncbeat_server.devtools.simulate.report import row_of
from syncbeat_server.devtools.simulate.settings import PolicyRow, Settings
from syncbeat_server.devtools.simulate.study import Days, solved, solved_hybrid
from syncbeat_server.sync.policy.interval import Bounds

_LONG_S = 3600.0


def variants(days: Days, settings: Settings, target_s: float, crew: Crew) -> list[dict[str, Any]]:
    """Rows beside those that are compared."""
    long = replace(settings, bounds=Bounds(settings.bounds.floor_s, 4.5 * target_s))
    longer = replace(settings, bounds=Bounds(settings.bounds.floor_s, 5.0 * target_s))
    uncapped = replace(settings, bounds=Bounds(1.0, _LONG_S))
    unknown = Days.of([replace(sample, history_days=0) for sample in days.samples])
    rows = [
        row_of(solved(row, those, at, target_s, crew), those, None, (), name)
        for name, row, those, at in (
            ("sqrt-ewma, no cap", PolicyRow.EWMA, days, uncapped),
            ("adaptive-pull, no cap", PolicyRow.PULL, days, uncapped),
            ("adaptive-pull, cap 5 x mean", PolicyRow.PULL, days, longer),
            ("adaptive-pull, cap 4.5 x mean", PolicyRow.PULL, days, long),
            ("all parameters known, same bounds", PolicyRow.CAPPED_CEILING, days, settings),
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
        ("hybrid, dedupe windows of 30 s", {"window_s": 30.0}),
        ("hybrid, dedupe windows of 5 min, the default of a trigger", {"window_s": 300.0}),
        ("hybrid, 1 % dark, 4 % lost", {"dark": 0.01, "loss": 0.04}),
        ("hybrid, 2.5 % dark, 2.5 % lost", {"dark": 0.025, "loss": 0.025}),
    ):
        at = replace(settings, waking=replace(settings.waking, **changed))
        rows.append(row_of(solved_hybrid(days, at, crew), days, None, (), name))
    return rows
