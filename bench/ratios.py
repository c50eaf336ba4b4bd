"""Tells from the rounds of two revisions by how much one is better or worse, and when rounds are enough.

The interval is Tukey's, of the signed rank test, around the Hodges-Lehmann estimate (Hollander, Wolfe, Chicken:
Nonparametric Statistical Methods, section 3.3). It asks of the rounds' log ratios only to be symmetric about the truth,
and they are whatever the noise, since chance decides which side of a round goes first. A round is a process of its own
on either side, because processes differ for as long as they live, and no number of rounds in one of them tells by how
much (Kalibera, Jones: Quantifying Performance Changes with Effect Size Confidence Intervals).
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

# Rounds end as soon as the interval happens to be narrow, which takes about a point of what it covers. So each look is
# at 96 %: it covers the truth 94.7 to 97 % of the time, as tried on made rounds of ten kinds of noise (tests/bench).
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
    """By how many percent a figure changed, with its 95 % interval; minus is worse, whatever the unit."""

    worst: float
    middle: float
    best: float

    @property
    def width(self) -> float:
        """Percentage points from end to end."""
        return self.best - self.worst


def change(pairs: Sequence[tuple[float, float]], better: Better) -> Change | None:
    """Returns the change of these rounds, each (now, before); None where they are too few, or one is not above 0."""
    if any(now <= 0 or before <= 0 for now, before in pairs):
        return None
    found = interval([log(now / before) for now, before in pairs])
    if found is None:
        return None
    low, middle, high = ((exp(one) - 1) * 100 for one in found)
    return Change(low, middle, high) if better is Better.MORE else Change(-high, -middle, -low)


def interval(values: Sequence[float]) -> tuple[float, float, float] | None:
    """Returns (low, middle, high) of the centre of these values; None where they are too few for any."""
    count = _left_out(len(values))
    if not count:
        return None
    means = sorted((one + other) / 2 for place, one in enumerate(values) for other in values[place:])
    return means[count - 1], median(means), means[-count]


def judge(found: Change | None) -> Verdict:
    """Returns the verdict on a change. Worse is what can only be so: both ends are, and the middle by 3 % or more."""
    if found is None:
        return Verdict.UNDECIDED
    if found.worst > _END_LIMIT and found.middle > _MIDDLE_LIMIT:
        return Verdict.NOT_WORSE
    return Verdict.WORSE if found.best < 0 and found.middle <= _MIDDLE_LIMIT else Verdict.UNDECIDED


def enough(rounds: int, found: Change | None) -> bool:
    """Tell if the rounds made so far suffice."""
    narrow = found is not None and found.width <= WIDEST
    return rounds >= MOST_ROUNDS or (rounds >= FEWEST_ROUNDS and narrow)


@cache
def _left_out(count: int) -> int:
    # In how many of the 2**count signs does each sum of ranks come about? So many means are outside on either side.
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
