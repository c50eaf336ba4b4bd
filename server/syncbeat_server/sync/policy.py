"""When should a device ask again? Pure.

The interval is the square-root law: polling what changes `rate` times a second every `t` seconds costs 1/t polls
and leaves rate*t/2 stale seconds a second; the sum, weighed, is least at t = sqrt(weight / rate)
(Cho and Garcia-Molina, "Effective page refresh policies for web crawlers", 2003, give the same law for crawlers).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import datetime, timedelta
from operator import attrgetter

from syncbeat_server.sync.model import Activity, ActivityState, Hint, Network, Priority, ScopeState

MEMORY_S = 900.0
"""Over how many seconds a scope's change rate is averaged (exponentially)."""

# 15 s at 20 changes an hour, 106 s at 0.4 an hour, with somebody looking.
_WEIGHT_S = 1.25
_MIN_S, _MAX_S = 10.0, 300.0
_BACKGROUND_ATTENTION = 0.1
_IDLE_HALVES_AT_S = 120.0
_SAVING_ATTENTION = 0.5
_CELLULAR_ATTENTION = 0.8
_LEAST_RATE = 1e-6
_TIERS = ((10.0, Priority.IMMEDIATE), (30.0, Priority.FAST), (120.0, Priority.NORMAL))
_STREAM_BELOW_S = 30.0
_BY_SCOPE = attrgetter("scope")


def rate_at(scope: ScopeState, now: datetime) -> float:
    """Change commits a second of a scope at `now`, decayed since its last change."""
    if scope.changed_at is None:
        return 0.0
    elapsed = max(0.0, (now - scope.changed_at).total_seconds())
    return scope.change_rate * math.exp(-elapsed / MEMORY_S)


def attention(activity: Activity) -> float:
    """How much a stale second matters on this device now, from 0 to 1."""
    weight = 1.0 if activity.state is ActivityState.FOREGROUND else _BACKGROUND_ATTENTION
    weight /= 1.0 + max(0.0, activity.idle_s) / _IDLE_HALVES_AT_S
    if activity.network is Network.CELLULAR:
        weight *= _CELLULAR_ATTENTION
    return weight * (_SAVING_ATTENTION if activity.battery_low else 1.0)


def interval_s(rate: float, weight: float) -> float:
    """Seconds until the next poll: never below 10 s nor above 300 s; shorter with more rate and more attention."""
    return min(_MAX_S, max(_MIN_S, math.sqrt(_WEIGHT_S / max(rate * weight, _LEAST_RATE))))


def tier(interval: float) -> Priority:
    """The label of an interval."""
    for most, label in _TIERS:
        if interval <= most:
            return label
    return Priority.SLOW


def decide(
    scopes: Iterable[ScopeState], activity: Activity, now: datetime, *, changed: bool, explain: bool = False
) -> Hint:
    """The hint for a device that keeps these scopes in sync."""
    states = sorted(scopes, key=_BY_SCOPE)
    rate = sum([rate_at(state, now) for state in states])
    weight = attention(activity)
    interval = interval_s(rate, weight)
    explanation = ""
    if explain:
        explanation = (
            f"{len(states)} scopes change {rate * 3600:.2f} times an hour; attention {weight:.2f} "
            f"({activity.state.lower()}, idle {activity.idle_s:.0f} s); the square-root law gives {interval:.1f} s"
        )
    return Hint(
        poll_interval_s=interval,
        priority=tier(interval),
        next_poll_at=now + timedelta(seconds=interval),
        changed=changed,
        heads=tuple([state.cursor for state in states]),
        prefer_stream=activity.state is ActivityState.FOREGROUND and interval <= _STREAM_BELOW_S,
        explanation=explanation,
    )
