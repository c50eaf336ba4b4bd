"""Weighs a stale second on a device, and the cost of a poll to it. Pure."""

from __future__ import annotations

from math import exp

from syncbeat_server.sync.model import Activity, ActivityState, Network

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
