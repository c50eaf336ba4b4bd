"""Figures, their lines of JSON, and the interleaved rounds whose medians they are."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Options:
    """Seconds of each side of a round, and the number of rounds.

    Many short rounds are better than a few long ones, because a shared machine's speed changes from second to second.
    """

    seconds: float = 1.5
    rounds: int = 9


class Better(StrEnum):
    """The direction in which a figure is better."""

    MORE = "more"
    LESS = "less"


@dataclass(frozen=True)
class Round:
    """The result of one side of a round. CPU is in microseconds per request; that of the database is separate."""

    value: float
    server_cpu_us: float | None = None
    database_cpu_us: float | None = None


@dataclass(frozen=True)
class Figure:
    """A measured figure. `runs` are the rounds as [ours, baseline]; value and baseline are their medians.

    The ratio is ours over the baseline: the median of the rounds' ratios, whose sides were measured next to each other.
    """

    name: str
    unit: str
    better: Better
    value: float
    baseline: float | None
    runs: list[list[float]]
    notes: Mapping[str, Any] = field(default_factory=dict)

    def line(self) -> str:
        """Return the figure as one line of JSON."""
        paired_runs = [run for run in self.runs if len(run) == 2 and run[1]]
        ratio = round(median(ours / baseline for ours, baseline in paired_runs), 3) if paired_runs else None
        return json.dumps(
            {
                "name": self.name,
                "value": round_value(self.value),
                "unit": self.unit,
                "better": self.better,
                "baseline": None if self.baseline is None else round_value(self.baseline),
                "ratio": ratio,
                "runs": [[round_value(value) for value in run] for run in self.runs],
                **self.notes,
            }
        )


def measure_pairs(
    name: str,
    unit: str,
    better: Better,
    options: Options,
    ours: Callable[[], Round],
    baseline: Callable[[], Round],
    **notes: Any,
) -> Figure:
    """Measure ours and the baseline alternately, so that other work on the machine affects both equally."""
    mine: list[Round] = []
    theirs: list[Round] = []
    for number in range(1, options.rounds + 1):
        # The order alternates, so that neither side always runs with warmer caches.
        for side, measure in ((mine, ours), (theirs, baseline)) if number % 2 else ((theirs, baseline), (mine, ours)):
            side.append(measure())
        report_progress(
            f"{name}: round {number}/{options.rounds}: {mine[-1].value:,.0f} against {theirs[-1].value:,.0f} {unit}"
        )
    costs = {
        "cpu_us_per_request": _median([one.server_cpu_us for one in mine]),
        "database_cpu_us_per_request": _median([one.database_cpu_us for one in mine]),
        "baseline_cpu_us_per_request": _median([one.server_cpu_us for one in theirs]),
    }
    return Figure(
        name=name,
        unit=unit,
        better=better,
        value=median(one.value for one in mine),
        baseline=median(one.value for one in theirs),
        runs=[[one.value, other.value] for one, other in zip(mine, theirs, strict=True)],
        notes={**{key: value for key, value in costs.items() if value is not None}, **notes},
    )


def report_progress(text: str) -> None:
    """Print progress to stderr; stdout holds only results."""
    print(text, file=sys.stderr, flush=True)


def _median(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(median(known), 1) if known else None


def round_value(value: float) -> float:
    """Round a value to the digits that are reported."""
    return round(value, 3) if value < 100 else round(value, 1)
