"""Books the arrivals that hints promise, second by second, so that devices do not all come at once. Pure.

The processes that issue all hints know when devices will come. An `ArrivalBook` counts how many were promised to each
second; of two moments near the wanted one a device gets the one that fewer will share (the power of two choices:
Mitzenmacher, "The power of two choices in randomized load balancing", 2001). Where even that one is crowded, as after
an outage that has put all devices in step, it is sought further away.

A second will hold more in the end than is promised to it now: devices that ask until then are still to be promised,
the more the further it is away. Without that term the later of two moments would always seem the emptier one, and every
interval would grow. In a steady state `rate` hints are issued a second, of which the share `G(lead)` is for less than
`lead` ahead, so that a second `lead` ahead still gets `rate * G(lead)`. By Little's law `rate` is the number of
promised arrivals over the mean interval.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import accumulate

HORIZON_S = 3600
"""Seconds ahead for which arrivals are booked. A longer interval is spread by chance alone."""

_SLOTS = 4096  # a power of two above the horizon, so that a second's slot is a mask of it
_MASK = _SLOTS - 1
_NEAR, _WIDE = 0.1, 0.5  # of the interval: how far from it a moment may be, and may be where those are crowded
_FURTHER_DRAWS = 2
_CROWDED, _CROWDED_BY = 1.25, 4.0  # a second is crowded above so many times the mean, and so many arrivals more
_MAX_WANTED = 16_384  # counted intervals, after which all of them count for half
_RECOUNT_GROWTH = 1.1  # of the counted intervals, after which the shares are computed anew
_A_LITTLE = 1e-3  # keeps a quotient from division by zero
_MAX_SHARED = 1_000  # seconds, which bounds a message to Redis
_FORECAST_S, _WINDOW_S = 60, 10

Draw = Callable[[], float]
"""Returns a random number from 0 to 1, as `random.random`."""


_Moment = tuple[float, float]
# The arrivals that a second is expected to have, and the seconds until it comes. Plain, as each hint may make three.


class ArrivalBook:
    """Counts the arrivals promised to each second of the coming hour, by this process and by the others.

    Moments are in unix seconds, so that all processes mean the same second.
    """

    def __init__(self, now: float) -> None:
        self._second = int(now)
        self._booked = [0] * _SLOTS
        self._own = [0] * _SLOTS  # the part of it that this process has booked and shared
        self._unshared: dict[int, int] = {}  # booked here and not shared with the others yet
        self._promised = 0
        # Hints by the interval they wanted, and the share of them up to each interval.
        self._wanted = [0.0] * HORIZON_S
        self._share_below = [0.0] * HORIZON_S
        self._count = 0.0
        self._sum_s = 0.0
        self._counted = 0.0

    def book_arrival(self, now: float, interval_s: float, draw: Draw, floor_s: float = 0.0) -> float:
        """Book the arrival of a device after about `interval_s`; return the seconds until it.

        They are within a tenth of the interval, or within a half where that is crowded, and never below the floor.
        """
        if int(now) != self._second:
            self.advance_to(now)
        start, width = interval_s * (1.0 - _NEAR), interval_s * 2.0 * _NEAR
        wait, other = start + width * draw(), start + width * draw()
        if start < floor_s:
            wait, other = max(floor_s, wait), max(floor_s, other)
        if not start + width < HORIZON_S > floor_s:
            return wait
        # The wanted interval is counted and not the chosen one: else a habit of choosing late would confirm itself.
        self._wanted[int(wait)] += 1.0
        self._count += 1.0
        self._sum_s += wait
        booked, below = self._booked, self._share_below
        rate = self._promised * self._count / (self._sum_s + _A_LITTLE)
        expected = booked[int(now + wait) & _MASK] + rate * below[int(wait)]
        other_expected = booked[int(now + other) & _MASK] + rate * below[int(other)]
        if other_expected < expected:
            wait, expected = other, other_expected
        if expected > _CROWDED * rate + _CROWDED_BY:
            wait = self._further_away(now, interval_s, draw, floor_s, (expected, wait))
        second, unshared = int(now + wait), self._unshared
        booked[second & _MASK] += 1
        unshared[second] = unshared.get(second, 0) + 1
        self._promised += 1
        return wait

    def advance_to(self, now: float) -> int:
        """Drop the seconds before `now`; return the arrivals that were promised to them."""
        second = int(now)
        passed_arrivals = 0
        for passed in range(self._second, min(second, self._second + _SLOTS)):
            slot = passed & _MASK
            passed_arrivals += self._booked[slot]
            self._booked[slot] = self._own[slot] = 0
            self._unshared.pop(passed, None)
        self._promised -= passed_arrivals
        self._second = max(self._second, second)
        if self._count > _MAX_WANTED:
            self._wanted = [wanted / 2.0 for wanted in self._wanted]
            self._count /= 2.0
            self._sum_s /= 2.0
            self._counted /= 2.0
        if self._count > _RECOUNT_GROWTH * self._counted:
            self._counted = self._count
            self._share_below = [wanted / self._count for wanted in accumulate(self._wanted)]
        return passed_arrivals

    def take_unshared(self) -> dict[int, int]:
        """Return the arrivals booked here by second that the others do not know; they count as shared from now.

        At most a thousand seconds, the next ones first; the rest is left for the next time.
        """
        unshared, left = self._unshared, {}
        if len(unshared) > _MAX_SHARED:
            seconds = sorted(unshared)
            left = {second: unshared[second] for second in seconds[_MAX_SHARED:]}
            unshared = {second: unshared[second] for second in seconds[:_MAX_SHARED]}
        self._unshared = left
        for second, count in unshared.items():
            self._own[second & _MASK] += count
        return unshared

    def return_unshared(self, unshared: Mapping[int, int]) -> None:
        """Take back what `take_unshared` returned, because it could not be shared."""
        for second, count in unshared.items():
            if second >= self._second:
                self._own[second & _MASK] -= count
                self._unshared[second] = self._unshared.get(second, 0) + count

    def set_totals(self, start: int, seconds: int, totals: Mapping[int, int]) -> None:
        """Set the arrivals that all processes together have shared for the seconds from `start` on; 0 if missing.

        Where fewer were shared than were booked here, what was shared is lost, and the own count stands.
        """
        for second in range(max(start, self._second), min(start + seconds, self._second + HORIZON_S)):
            slot = second & _MASK
            total = max(self._own[slot], totals.get(second, 0)) + self._unshared.get(second, 0)
            self._promised += total - self._booked[slot]
            self._booked[slot] = total

    def peak_per_s(self) -> float:
        """Return the arrivals a second in the fullest ten seconds of the coming minute."""
        first = self._second + 1
        windows = range(first, first + _FORECAST_S, _WINDOW_S)
        return max(sum(self._booked[at & _MASK] for at in range(w, w + _WINDOW_S)) for w in windows) / _WINDOW_S

    def coming_seconds(self) -> tuple[int, float]:
        """Return the arrivals of the fullest of the coming ten seconds, and their mean."""
        coming = [self._booked[at & _MASK] for at in range(self._second + 1, self._second + 1 + _WINDOW_S)]
        return max(coming), sum(coming) / _WINDOW_S

    def _further_away(self, now: float, interval_s: float, draw: Draw, floor_s: float, found: _Moment) -> float:
        rate = self._promised * self._count / (self._sum_s + _A_LITTLE)
        best, booked, below = found, self._booked, self._share_below
        for _ in range(_FURTHER_DRAWS):
            wait = interval_s * (1.0 - _WIDE + 2.0 * _WIDE * draw())
            if wait < floor_s:
                wait = floor_s
            if wait > HORIZON_S - 1.0:
                wait = HORIZON_S - 1.0
            moment = booked[int(now + wait) & _MASK] + rate * below[int(wait)], wait
            if moment < best:
                best = moment
        return best[1]
