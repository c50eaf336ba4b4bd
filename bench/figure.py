"""A figure, its line of JSON, and the interleaved rounds it is the median of."""

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
    """The length of a measurement: seconds of one side of a round, and the number of rounds. Many short rounds tell
    more than few long ones, since a shared machine's speed changes from one second to the next.
    """

    seconds: float = 1.5
    rounds: int = 9


class Better(StrEnum):
    """The direction in which a figure is better."""

    MORE = "more"
    LESS = "less"


@dataclass(frozen=True)
class Round:
    """The result of one side in one round. CPU is in microseconds for each request, that of the database apart."""

    value: float
    server_cpu_us: float | None = None
    database_cpu_us: float | None = None


@dataclass(frozen=True)
class Figure:
    """One measured figure. `runs` are the rounds as [ours, baseline]; value and baseline are their medians. The ratio
    is ours over the baseline: the median of the rounds' own ratios, whose two sides were measured side by side.
    """

    name: str
    unit: str
    better: Better
    value: float
    baseline: float | None
    runs: list[list[float]]
    notes: Mapping[str, Any] = field(default_factory=dict)

    def line(self) -> str:
        """The figure as one line of JSON."""
        paired_runs = [run for run in self.runs if len(run) == 2 and run[1]]
        ratio = round(median(ours / baseline for ours, baseline in paired_runs), 3) if paired_runs else None
        return json.dumps(
            {
                "name": self.name,
                "value": short(self.value),
                "unit": self.unit,
                "better": self.better,
                "baseline": None if self.baseline is None else short(self.baseline),
                "ratio": ratio,
                "runs": [[short(value) for value in run] for run in self.runs],
                **self.notes,
            }
        )


def paired(
    name: str,
    unit: str,
    better: Better,
    options: Options,
    ours: Callable[[], Round],
    baseline: Callable[[], Round],
    **notes: Any,
) -> Figure:
    """Measure ours and the baseline in turns, so that what else the machine does hits both alike."""
    mine: list[Round] = []
    theirs: list[Round] = []
    for number in range(1, options.rounds + 1):
        # Who goes first changes, lest one side always finds the warmer caches.
        for side, measure in ((mine, ours), (theirs, baseline)) if number % 2 else ((theirs, baseline), (mine, ours)):
            side.append(measure())
        say(f"{name}: round {number}/{options.rounds}: {mine[-1].value:,.0f} against {theirs[-1].value:,.0f} {unit}")
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


def say(text: str) -> None:
    """Progress, which is not part of the result."""
    print(text, file=sys.stderr, flush=True)


def _median(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(median(known), 1) if known else None


def short(value: float) -> float:
    """Returns a value with as many digits as are told of it."""
    return round(value, 3) if value < 100 else round(value, 1)
