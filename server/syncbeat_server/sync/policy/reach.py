"""Estimates the share of changes that a device will not hear of by push. Pure.

A registration token may be dead without anybody knowing, so reach is earned: a device counts as one that pushes do not
reach until it has answered some. It is either dead, and fetches after a wake-up by chance only, or alive, and misses as
many as the app's devices do. The posterior odds of the two follow from its answers and misses (Bayes' rule).
"""

from __future__ import annotations

import math

from syncbeat_server.defaults import LONGEST_POLL_S
from syncbeat_server.directory.model import REACH_HALF_LIFE_S
from syncbeat_server.sync.model import Reach

STREAM_MISSES = 0.001
"""The share of changes that an open stream is assumed to lose."""

_DEAD_ODDS = 9.0
_ANSWERED_BY_CHANCE = 0.01
_MIN_MISSES, _MAX_MISSES = 1e-4, 0.9
_MAX_LOG_ODDS = 50.0


def miss_share(reach: Reach, app_misses: float, now: float) -> float:
    """Return the share of wake-ups that a device will not answer; live devices of its app miss `app_misses`."""
    if not reach.usable:
        return 1.0
    misses = min(_MAX_MISSES, max(_MIN_MISSES, app_misses))
    kept = 0.5 ** (max(0.0, now - reach.at) / REACH_HALF_LIFE_S)
    log_odds = (
        math.log(_DEAD_ODDS)
        + kept * reach.answered * math.log(_ANSWERED_BY_CHANCE / (1.0 - misses))
        + kept * reach.missed * math.log((1.0 - _ANSWERED_BY_CHANCE) / misses)
    )
    odds = math.exp(min(_MAX_LOG_ODDS, log_odds))
    return (odds + misses) / (1.0 + odds)


def longest_wait(cap_s: float, residual: float) -> float:
    """Return the longest wait of a device that hears of all but `residual` of its changes by other ways than polls."""
    wait_s = cap_s / residual
    if wait_s > LONGEST_POLL_S:
        wait_s = LONGEST_POLL_S
    return max(wait_s, cap_s)
