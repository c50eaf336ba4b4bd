"""Rivals for logs: simple policies with the constants that were best on the days before.

Each takes all scopes of a device for one feed, and polls within the same bounds as the server's own policy.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_right
from collections.abc import Iterable
from typing import NamedTuple

from syncbeat_devtools.simulate.fleet.devices import DAY, Device
from syncbeat_devtools.simulate.policies.log_schedules import Answer, Steadiness
from syncbeat_devtools.simulate.policies.settings import POLL_COST, PolicyRow
from syncbeat_server.sync.policy.comparison_policies import FIXED_S, square_root_interval
from syncbeat_server.sync.policy.interval import Bounds

_PRIOR_CHANGES = 0.5
_MINUTE, _HOUR = 60.0, 3600.0


class Constants(NamedTuple):
    """Holds the two constants of a rival.

    Of averages they are the seconds in which the recent and the long window fade; of timers the seconds after activity
    for which a device polls fast, and the ratio of its slow and its fast interval.
    """

    first: float
    second: float


GRIDS: dict[PolicyRow, tuple[Constants, ...]] = {
    PolicyRow.TUNED_EWMA: tuple(
        Constants(recent, longest)
        for recent in (5 * _MINUTE, 15 * _MINUTE, 40 * _MINUTE)
        for longest in (4 * _HOUR, DAY, 4 * DAY)
    ),
    PolicyRow.AFTER_ACTIVITY: tuple(
        Constants(minutes * _MINUTE, ratio) for minutes in (5, 20, 60) for ratio in (4.0, 10.0, 25.0)
    ),
    PolicyRow.BY_SCREEN: tuple(
        Constants(minutes * _MINUTE, ratio) for minutes in (5, 20, 60) for ratio in (4.0, 10.0, 25.0)
    ),
}
"""The constants tried for each rival."""

USUAL = {
    PolicyRow.TUNED_EWMA: Constants(180.0, 7200.0),
    PolicyRow.AFTER_ACTIVITY: Constants(600.0, 4.0),
    PolicyRow.BY_SCREEN: Constants(600.0, 4.0),
}
"""The constants of a rival for which there is no history."""


class AverageSchedule:
    """The square-root law with the rate of a device's feed by two moving averages, whichever is larger."""

    def __init__(self, constants: Constants, price: float, bounds: Bounds, device: Device, mean_rate: float) -> None:
        self._constants, self._price, self._bounds, self._mean_rate = constants, price, bounds, mean_rate
        self._moments = (*device.history, *device.changes)
        self._born = device.born
        self._heard, self._at, self._recent, self._long = 0, device.born, 0.0, 0.0
        self._steadiness = Steadiness()

    def ask(self, now: float) -> Answer:
        """Return the interval after a poll."""
        heard = bisect_right(self._moments, now, self._heard)
        for at in self._moments[self._heard : heard]:
            self._fade(at)
            self._recent += 1.0
            self._long += 1.0
        self._heard = heard
        self._fade(now)
        recent_s, long_s = self._constants
        seen_s = long_s * -math.expm1(-max(0.0, now - self._born) / long_s)
        rate = max(self._recent / recent_s, (self._long + _PRIOR_CHANGES) / (seen_s + _PRIOR_CHANGES / self._mean_rate))
        wait_s = square_root_interval(rate, self._price, POLL_COST, self._bounds)
        next_at = self._moments[heard] if heard < len(self._moments) else DAY
        return self._steadiness.answer(now, wait_s, heard, next_at)

    def _fade(self, now: float) -> None:
        elapsed = max(0.0, now - self._at)
        self._recent *= math.exp(-elapsed / self._constants.first)
        self._long *= math.exp(-elapsed / self._constants.second)
        self._at = max(now, self._at)


class TimerSchedule:
    """A fast interval for some time after each of these moments, and a slow one at other times."""

    def __init__(self, constants: Constants, scale: float, bounds: Bounds, moments: Iterable[float]) -> None:
        self._hold_s = constants.first
        self._moments = tuple(moments)
        self._fast_s = _bounded(FIXED_S * scale, bounds)
        self._slow_s = _bounded(FIXED_S * scale * constants.second, bounds)

    def ask(self, now: float) -> Answer:
        """Return the interval after a poll."""
        heard = bisect_right(self._moments, now)
        next_at = self._moments[heard] if heard < len(self._moments) else DAY
        slow_at = self._moments[heard - 1] + self._hold_s if heard else -math.inf
        if slow_at > now:
            return Answer(self._fast_s, min(slow_at, next_at))
        return Answer(self._slow_s, next_at)


def activity_of(device: Device, own: Iterable[float]) -> Iterable[float]:
    """Return the moments in which a device got a change, or its own user was active."""
    return heapq.merge((*device.history, *device.changes), own)


def _bounded(wait_s: float, bounds: Bounds) -> float:
    return min(bounds.cap_s, max(bounds.floor_s, wait_s))
