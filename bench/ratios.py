"""Estimates from the rounds of two revisions how much a figure changed, and decides when there are enough rounds.

The interval is Tukey's, of the signed rank test, around the Hodges-Lehmann estimate (Hollander, Wolfe, Chicken:
Nonparametric Statistical Methods, section 3.3). It requires only that the rounds' log ratios are symmetric about the
truth, and they are for any noise, since the order within a round is random. Each side of a round is a process of its
own, because processes differ for as long as they live, and no number of rounds in one of them shows by how much
(Kalibera, Jones: Quantifying Performance Changes with Effect Size Confidence Intervals).

See ADR 73.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from math import exp, log
from statistics import median

from bench.figure import Better

FEWEST_ROUNDS = 10
MOST_ROUNDS = 60
WIDEST = 4.0

# Rounds stop as soon as the interval happens to be narrow, which costs about a point of coverage. So each interval is
# at 96 %: it covers the truth 94.7 to 97 % of the time, as tests on simulated rounds of ten kinds of noise show
# (tests/bench).
_LEVEL = 0.96
_MIDDLE_LIMIT = -3.0
_END_LIMIT = -5.0


class Verdict(StrEnum):
    """The verdict on a figure."""

    NOT_WORSE = "not worse by 3 %"
    WORSE = "worse"
    UNDECIDED = "undecided"
    ABSENT = "absent"
    FAILED = "failed"


@dataclass(frozen=True)
class Change:
    """The change of a figure in percent, with its 95 % interval; negative is worse, whatever the unit."""

    worst: float
    middle: float
    best: float

    @property
    def width(self) -> float:
        """Return the width of the interval in percentage points."""
        return self.best - self.worst


def estimate_change(pairs: Sequence[tuple[float, float]], better: Better) -> Change | None:
    """Estimate the change from rounds, each (now, before).

    Returns None if there are too few, or a value is not above 0.
    """
    if any(now <= 0 or before <= 0 for now, before in pairs):
        return None
    found = confidence_interval([log(now / before) for now, before in pairs])
    if found is None:
        return None
    low, middle, high = ((exp(one) - 1) * 100 for one in found)
    return Change(low, middle, high) if better is Better.MORE else Change(-high, -middle, -low)


def confidence_interval(values: Sequence[float]) -> tuple[float, float, float] | None:
    """Return (low, middle, high) of the centre of these values; None if there are too few for any."""
    count = _excluded_means(len(values))
    if not count:
        return None
    means = sorted((one + other) / 2 for place, one in enumerate(values) for other in values[place:])
    return means[count - 1], median(means), means[-count]


def classify(found: Change | None) -> Verdict:
    """Return the verdict on a change: WORSE only if the whole interval is below 0 and its middle at most -3 %."""
    if found is None:
        return Verdict.UNDECIDED
    if found.worst > _END_LIMIT and found.middle > _MIDDLE_LIMIT:
        return Verdict.NOT_WORSE
    return Verdict.WORSE if found.best < 0 and found.middle <= _MIDDLE_LIMIT else Verdict.UNDECIDED


def has_enough_rounds(rounds: int, found: Change | None) -> bool:
    """Tell if no more rounds are needed."""
    narrow = found is not None and found.width <= WIDEST
    return rounds >= MOST_ROUNDS or (rounds >= FEWEST_ROUNDS and narrow)


@cache
def _excluded_means(count: int) -> int:
    # The number of the 2**count sign patterns that give each sum of ranks; from it follows how many means lie outside
    # on either side.
    ways = [1]
    for rank in range(1, count + 1):
        ways = [
            (ways[total] if total < len(ways) else 0) + (ways[total - rank] if total >= rank else 0)
            for total in range(len(ways) + rank)
        ]
    tail = places = 0
    while 2 * (tail + ways[places]) <= (1 - _LEVEL) * 2**count:
        tail += ways[places]
        places += 1
    return places
