"""How much of what changes will a device not hear of by push? Pure.

A registration token may be dead without anybody knowing, so reach is earned: a device is taken for one that pushes do
not reach until it has answered some. It is either dead, and fetches after a wake-up by chance only, or alive, and
misses as many as the app's devices do. The posterior odds of the two follow from what it answered and missed (Bayes'
rule).
"""

from __future__ import annotations

import math

from syncbeat_server.defaults import LONGEST_POLL_S
from syncbeat_server.directory.model import REACH_HALF_LIFE_S
from syncbeat_server.sync.model import Reach

STREAM_MISSES = 0.001
"""The share of changes that an open stream is taken to lose."""


_DEAD_ODDS = 9.0
_ANSWERED_BY_CHANCE = 0.01
_LEAST_MISSES, _MOST_MISSES = 1e-4, 0.9
_MOST_LOG_ODDS = 50.0


UNREACHED = Reach()


def miss_share(reach: Reach, app_misses: float, now: float) -> float:
    """The share of wake-ups that a device will not answer, where its app's devices that are alive miss `app_misses`."""
    if not reach.usable:
        return 1.0
    misses = min(_MOST_MISSES, max(_LEAST_MISSES, app_misses))
    kept = 0.5 ** (max(0.0, now - reach.at) / REACH_HALF_LIFE_S)
    log_odds = (
        math.log(_DEAD_ODDS)
        + kept * reach.answered * math.log(_ANSWERED_BY_CHANCE / (1.0 - misses))
        + kept * reach.missed * math.log((1.0 - _ANSWERED_BY_CHANCE) / misses)
    )
    odds = math.exp(min(_MOST_LOG_ODDS, log_odds))
    return (odds + misses) / (1.0 + odds)


def longest_wait(cap_s: float, residual: float) -> float:
    """The cap of a device that hears of all but `residual` of its changes by other ways than polls."""
    return max(cap_s, min(LONGEST_POLL_S, cap_s / residual))
