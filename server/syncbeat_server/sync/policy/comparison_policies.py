"""Implements simpler policies to compare with: by name in an app's settings, and in the simulator. Pure.

The two-window estimate is that of moving averages with exponential weights, of the last minutes and of the last hours,
whichever is larger; the tier table is what backends write by hand; the multiplicative back-off is that of many clients.
"""

from __future__ import annotations

import math

from syncbeat_server.sync.model import Windows
from syncbeat_server.sync.policy.interval import Bounds

FIXED_S = 30.0
"""The interval of fixed polling."""
REVIEW_S = 300.0
"""Seconds for which a device stays in the tier that the table gave it."""

LONG_S = 7200.0
"""The seconds in which the long count of changes fades."""

_RECENT_S = 180.0
_PRIOR_CHANGES = 0.5
_TIERS = ((1.5, 10.0), (0.5, 30.0), (0.02, 120.0))  # recent changes (decayed), and the interval from there on
_SLOWEST_S = 300.0
_ON_NEWS, _ON_NONE = 0.5, 1.5


def windows_after_change(windows: Windows, now: float) -> Windows:
    """Return the counts after a commit at `now`."""
    elapsed = max(0.0, now - windows.at)
    recent = windows.recent * math.exp(-elapsed / _RECENT_S) + 1.0
    long = windows.long * math.exp(-elapsed / LONG_S) + 1.0
    return Windows(recent, long, max(now, windows.at), windows.born)


def ewma_rate(windows: Windows, mean_rate: float, now: float) -> float:
    """Return changes a second by the two windows. `mean_rate` is that of the app's scopes, used for a new scope."""
    elapsed = max(0.0, now - windows.at)
    recent = windows.recent * math.exp(-elapsed / _RECENT_S) / _RECENT_S
    seen_s = LONG_S * -math.expm1(-max(0.0, now - windows.born) / LONG_S)
    long = windows.long * math.exp(-elapsed / LONG_S)
    return max(recent, (long + _PRIOR_CHANGES) / (seen_s + _PRIOR_CHANGES / mean_rate))


def square_root_interval(rate: float, price: float, cost: float, bounds: Bounds) -> float:
    """Return the interval of the square-root law for a constant rate: sqrt(2 * cost / (price * rate)), bounded."""
    if rate <= 0.0:
        return bounds.cap_s
    return min(bounds.cap_s, max(bounds.floor_s, math.sqrt(2.0 * cost / (price * rate))))


def fixed_interval(scale: float = 1.0) -> float:
    """Return the interval of fixed polling: 30 s, times `scale`."""
    return FIXED_S * scale


def tier_interval(windows: Windows, now: float, scale: float = 1.0) -> float:
    """Return the interval of the tier table, times `scale`: 10 s, 30 s, 2 min or 5 min by the recent changes."""
    recent = windows.recent * math.exp(-max(0.0, now - windows.at) / _RECENT_S)
    for least, interval in _TIERS:
        if recent >= least:
            return interval * scale
    return _SLOWEST_S * scale


def multiplicative_backoff(previous_s: float, bounds: Bounds, *, news: bool) -> float:
    """Return half the previous interval if the poll found news, and one and a half of it if not, within bounds."""
    return min(bounds.cap_s, max(bounds.floor_s, previous_s * (_ON_NEWS if news else _ON_NONE)))
