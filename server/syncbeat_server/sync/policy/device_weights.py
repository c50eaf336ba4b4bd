"""Judges a device: the weight of a stale second on it, the cost of a poll to it, and what pushes will not bring. Pure.

A registration token may be dead without anybody knowing, so reach is earned: a device counts as one that pushes do not
reach until it has answered some. It is either dead, and fetches after a wake-up by chance only, or alive, and misses as
many as the app's devices do. The posterior odds of the two follow from its answers and misses (Bayes' rule).
"""

from __future__ import annotations

from math import exp, log

from syncbeat_server.defaults import LONGEST_POLL_S
from syncbeat_server.directory.model import REACH_HALF_LIFE_S
from syncbeat_server.sync.model import Activity, ActivityState, Network, Reach

STREAM_MISSES = 0.001
"""The share of changes that an open stream is assumed to lose."""

_DEAD_ODDS = 9.0
_ANSWERED_BY_CHANCE = 0.01
_MIN_MISSES, _MAX_MISSES = 1e-4, 0.9
_MAX_LOG_ODDS = 50.0

_FOREGROUND = ActivityState.FOREGROUND  # kept, since a look-up in an enum takes as long as a call
_UNATTENDED = 0.05
_FADES_IN_S = 120.0
_BACKGROUND_COST, _CELLULAR_COST, _LOW_BATTERY_COST = 3.0, 5.0 / 3.0, 2.0


def attention(activity: Activity) -> float:
    """Return the weight of a stale second now, from 0.05 to 1: highest where a user has just touched the app."""
    if activity.state is not _FOREGROUND:
        return _UNATTENDED
    idle_s = activity.idle_s
    return 1.0 if idle_s <= 0.0 else _UNATTENDED + (1.0 - _UNATTENDED) * exp(-idle_s / _FADES_IN_S)


def poll_cost(activity: Activity) -> float:
    """Return the cost of a poll, in polls of a device in the foreground on Wi-Fi.

    Waking a radio costs more than a request.
    """
    cost = 1.0
    if activity.state is not _FOREGROUND:
        cost *= _BACKGROUND_COST
        if activity.network is Network.CELLULAR:
            cost *= _CELLULAR_COST
    return cost * _LOW_BATTERY_COST if activity.battery_low else cost


def miss_share(reach: Reach, app_misses: float, now: float) -> float:
    """Return the share of wake-ups that a device will not answer; live devices of its app miss `app_misses`."""
    if not reach.usable:
        return 1.0
    misses = min(_MAX_MISSES, max(_MIN_MISSES, app_misses))
    kept = 0.5 ** (max(0.0, now - reach.at) / REACH_HALF_LIFE_S)
    log_odds = (
        log(_DEAD_ODDS)
        + kept * reach.answered * log(_ANSWERED_BY_CHANCE / (1.0 - misses))
        + kept * reach.missed * log((1.0 - _ANSWERED_BY_CHANCE) / misses)
    )
    odds = exp(min(_MAX_LOG_ODDS, log_odds))
    return (odds + misses) / (1.0 + odds)


def longest_wait(cap_s: float, residual: float) -> float:
    """Return the longest wait of a device that hears of all but `residual` of its changes by other ways than polls."""
    wait_s = cap_s / residual
    if wait_s > LONGEST_POLL_S:
        wait_s = LONGEST_POLL_S
    return max(wait_s, cap_s)
