"""Estimates how reliably pushes reach a device and an app: the credit an answer gets, and a drop in answers. Pure.

A device that fetches soon after a wake-up was woken by it, or happened to poll; only an acknowledgement tells which. So
an answer counts by its odds: answers to pushes come fast (exponentially distributed, 5 s on average), polls come at any
time (assumed: one in 20 s, which is often), and the device's answers so far give the prior. Repeating this moves the
rate to the true one (expectation maximisation of a mixture of two known distributions). A device that polls far more
often than that looks reachable unless it acknowledges.
"""

from __future__ import annotations

import math
from typing import NamedTuple

RECENT_HALF_LIFE_S = 600.0
REACHABLE_RATE = 0.5

_ANSWER_S = 5.0
_POLL_S = 20.0
_PRIOR_ANSWERED, _PRIOR_WEIGHT = 0.25, 1.0
_LEAST_RECENT = 20.0
_DROPPED = 0.5


class AppReach(NamedTuple):
    """First tries of an app at devices known to be reachable: decayed counts of the last day and the last minutes."""

    answered: float
    missed: float
    recent_answered: float
    recent_missed: float


def answer_rate(answered: float, missed: float) -> float:
    """Return the probability, from 0 to 1, that a wake-up is answered; low until answers were seen."""
    return (answered + _PRIOR_ANSWERED) / (answered + missed + _PRIOR_WEIGHT)


def push_credit(known_rate: float, after_s: float) -> float:
    """Return the probability, from 0 to 1, that the push made a device fetch `after_s` seconds later."""
    by_push = known_rate * math.exp(-max(0.0, after_s) / _ANSWER_S) / _ANSWER_S
    by_chance = (1.0 - known_rate) / _POLL_S
    return by_push / (by_push + by_chance)


def has_dropped(reach: AppReach) -> bool:
    """Return True if pushes are answered less than half as often as over the day, in 20 recent tries or more."""
    recent = reach.recent_answered + reach.recent_missed
    if recent < _LEAST_RECENT:
        return False
    usual = reach.answered / (reach.answered + reach.missed)
    return reach.recent_answered / recent < _DROPPED * usual
