"""How far pushes reach: what an answer proves, and when an app's pushes are not to be relied on. Pure.

A device that fetches soon after a wake-up was woken by it, or polled by chance. Nobody says which, unless the device
acknowledges. So an answer counts by its odds: pushes are answered fast (exponentially, within 5 s on average), polls
come at any time (one in 20 s, which is often), and the device's own answers so far say how likely a push reaches it at
all. Counted so again and again, the share goes to what it is in truth (expectation maximisation of a mixture of two
known distributions). Who polls far more often than that looks reachable unless it acknowledges.
"""

from __future__ import annotations

import math
from typing import NamedTuple

RECENT_HALF_LIFE_S = 600.0
KNOWN_SHARE = 0.5

_ANSWER_S = 5.0
_POLL_S = 20.0
_PRIOR_ANSWERED, _PRIOR_WEIGHT = 0.25, 1.0
_LEAST_RECENT = 20.0
_FALLEN = 0.5


class AppReach(NamedTuple):
    """First tries of an app at devices that pushes are known to reach, of the last day and of the last minutes."""

    answered: float
    missed: float
    recent_answered: float
    recent_missed: float


def share(answered: float, missed: float) -> float:
    """How likely a wake-up is answered, from 0 to 1: low until it was seen."""
    return (answered + _PRIOR_ANSWERED) / (answered + missed + _PRIOR_WEIGHT)


def belief(known_share: float, after_s: float) -> float:
    """How likely it was the push that made a device fetch `after_s` seconds later, from 0 to 1."""
    by_push = known_share * math.exp(-max(0.0, after_s) / _ANSWER_S) / _ANSWER_S
    by_chance = (1.0 - known_share) / _POLL_S
    return by_push / (by_push + by_chance)


def fallen(reach: AppReach) -> bool:
    """Whether pushes that used to be answered are not any more: half of the day's share, in twenty tries or more."""
    recent = reach.recent_answered + reach.recent_missed
    if recent < _LEAST_RECENT:
        return False
    usual = reach.answered / (reach.answered + reach.missed)
    return reach.recent_answered / recent < _FALLEN * usual
