"""To which moment is a hint moved, so that not all come at once and no more come than can be served? Pure.

Who issues every hint knows who comes when. A `Book` holds how many were promised to each second; of two moments near
the wanted one a device gets that which fewer will share (the power of two choices: Mitzenmacher, "The power of two
choices in randomized load balancing", 2001). Where even that one is crowded, as after an outage that has put all
devices in step, it is sought further away.

What a second will hold in the end is more than what is promised to it now: those who ask until then are still to be
promised, the more the further it is away. Without that, the later of two moments would always seem the emptier one,
and every interval would grow. In a steady state `rate` hints are issued a second, of which the share `G(lead)` is for
less than `lead` ahead, so that a second `lead` ahead still gets `rate * G(lead)`. By Little's law `rate` is all that is
promised over the mean interval.

The stretch makes intervals longer when the load nears what can be served, those of devices in the background first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import accumulate
from typing import NamedTuple

HORIZON_S = 3600
"""How far ahead moments are booked. A longer interval is spread by chance alone."""
LONGEST_STRETCH = 12.0

_SLOTS = 4096
_MASK = _SLOTS - 1
_NEAR, _WIDE = 0.1, 0.5
_FURTHER_DRAWS = 2
_CROWDED, _CROWDED_BY = 1.25, 4.0
_REMEMBERED = 16_384
_COUNTED_ANEW = 1.1
_A_LITTLE = 1e-3
_MOST_TOLD = 1_000
_FORECAST_S, _WINDOW_S = 60, 10
_AIM, _CALM = 0.8, 0.6
_EASED = 0.95
_FOREGROUND_FROM = 3.0
_LONGEST_TURN_S = 300.0

Draw = Callable[[], float]
"""A number from 0 to 1 by chance, as `random.random`."""


class _Moment(NamedTuple):
    """How full a second will be, and in how many seconds it comes."""

    held: float
    wait_s: float


class Book:
    """What arrivals are promised to each second of the coming hour, by this process and by the others.

    Moments are in unix seconds, so that all processes mean the same second.
    """

    def __init__(self, now: float) -> None:
        self._second = int(now)
        self._booked = [0] * _SLOTS
        self._own = [0] * _SLOTS  # what of it was promised and told by this process
        self._fresh: dict[int, int] = {}  # what was promised and is not told yet
        self._promised = 0
        # How many hints there were by the interval they wanted, and what share of them is up to each.
        self._wanted = [0.0] * HORIZON_S
        self._below = [0.0] * HORIZON_S
        self._count = 0.0
        self._sum_s = 0.0
        self._counted = 0.0

    def choose(self, now: float, interval_s: float, draw: Draw, floor_s: float = 0.0) -> float:
        """In how many seconds a device shall come that is to come after about `interval_s`; books it.

        Within a tenth of the wanted ones, or within a half where that is crowded; never below the floor.
        """
        if int(now) != self._second:
            self.pass_to(now)
        start, width = interval_s * (1.0 - _NEAR), interval_s * 2.0 * _NEAR
        wait, other = start + width * draw(), start + width * draw()
        if start < floor_s:
            wait, other = max(floor_s, wait), max(floor_s, other)
        if not start + width < HORIZON_S > floor_s:
            return wait
        # What is wanted is counted and not what is chosen: else a habit of choosing late would confirm itself.
        self._wanted[int(wait)] += 1.0
        self._count += 1.0
        self._sum_s += wait
        booked, below = self._booked, self._below
        rate = self._promised * self._count / (self._sum_s + _A_LITTLE)
        held = booked[int(now + wait) & _MASK] + rate * below[int(wait)]
        other_held = booked[int(now + other) & _MASK] + rate * below[int(other)]
        if other_held < held:
            wait, held = other, other_held
        if held > _CROWDED * rate + _CROWDED_BY:
            wait = self._further(now, interval_s, draw, floor_s, _Moment(held, wait))
        second = int(now + wait)
        booked[second & _MASK] += 1
        self._fresh[second] = self._fresh.get(second, 0) + 1
        self._promised += 1
        return wait

    def pass_to(self, now: float) -> int:
        """Time has come to `now`: how many were promised to the seconds that are over."""
        second = int(now)
        over = 0
        for passed in range(self._second, min(second, self._second + _SLOTS)):
            place = passed & _MASK
            over += self._booked[place]
            self._booked[place] = self._own[place] = 0
            self._fresh.pop(passed, None)
        self._promised -= over
        self._second = max(self._second, second)
        if self._count > _REMEMBERED:
            self._wanted = [wanted / 2.0 for wanted in self._wanted]
            self._count /= 2.0
            self._sum_s /= 2.0
            self._counted /= 2.0
        if self._count > _COUNTED_ANEW * self._counted:
            self._counted = self._count
            self._below = [wanted / self._count for wanted in accumulate(self._wanted)]
        return over

    def take_fresh(self) -> dict[int, int]:
        """What was promised here and is not told to the others yet, by second; it counts as told from now.

        At most a thousand seconds, the next ones first; the rest is left for the next time.
        """
        fresh, left = self._fresh, {}
        if len(fresh) > _MOST_TOLD:
            seconds = sorted(fresh)
            left = {second: fresh[second] for second in seconds[_MOST_TOLD:]}
            fresh = {second: fresh[second] for second in seconds[:_MOST_TOLD]}
        self._fresh = left
        for second, count in fresh.items():
            self._own[second & _MASK] += count
        return fresh

    def put_back(self, untold: Mapping[int, int]) -> None:
        """What `take_fresh` gave could not be told."""
        for second, count in untold.items():
            if second >= self._second:
                self._own[second & _MASK] -= count
                self._fresh[second] = self._fresh.get(second, 0) + count

    def hear(self, start: int, seconds: int, told: Mapping[int, int]) -> None:
        """All processes together have told this of the seconds from `start` on; none of a second: nobody did.

        Where less was told than was promised here, what was told is lost.
        """
        for second in range(max(start, self._second), min(start + seconds, self._second + HORIZON_S)):
            place = second & _MASK
            total = max(self._own[place], told.get(second, 0)) + self._fresh.get(second, 0)
            self._promised += total - self._booked[place]
            self._booked[place] = total

    def forecast(self) -> float:
        """The most that is promised to ten seconds of the coming minute, a second."""
        first = self._second + 1
        windows = range(first, first + _FORECAST_S, _WINDOW_S)
        return max(sum(self._booked[at & _MASK] for at in range(w, w + _WINDOW_S)) for w in windows) / _WINDOW_S

    def coming(self) -> tuple[int, float]:
        """What is promised to the fullest of the coming ten seconds, and to them on average."""
        coming = [self._booked[at & _MASK] for at in range(self._second + 1, self._second + 1 + _WINDOW_S)]
        return max(coming), sum(coming) / _WINDOW_S

    def _further(self, now: float, interval_s: float, draw: Draw, floor_s: float, found: _Moment) -> float:
        rate = self._promised * self._count / (self._sum_s + _A_LITTLE)
        best = found
        for _ in range(_FURTHER_DRAWS):
            wait = min(HORIZON_S - 1.0, max(floor_s, interval_s * (1.0 - _WIDE + 2.0 * _WIDE * draw())))
            best = min(best, _Moment(self._booked[int(now + wait) & _MASK] + rate * self._below[int(wait)], wait))
        return best.wait_s


class Turns:
    """Spaces out those who are sent away at one moment: they come back one after the other, at what can be borne.

    That is the spread over the time that it takes to serve them all, E/(C - what comes anyway), without having to know
    how many they will be. Nobody waits longer than five minutes, since more turns than that would be kept by nobody.
    """

    def __init__(self) -> None:
        self._free_at = 0.0

    def next(self, now: float, per_s: float) -> float:
        """In how many seconds the next one may come back, where `per_s` of them can be borne a second."""
        self._free_at = min(now + _LONGEST_TURN_S, max(now, self._free_at) + 1.0 / per_s)
        return self._free_at - now


class Load(NamedTuple):
    """Each figure over what of it can be borne: at 1 it is full. One that is not measured is 0.

    `rate`: requests a second of all processes; `promised`: those that the book foresees; `in_flight`: calls under way
    here; `lag`: how late the loop is; `pool`: who waits for a connection of the database.
    """

    rate: float = 0.0
    promised: float = 0.0
    in_flight: float = 0.0
    lag: float = 0.0
    pool: float = 0.0


def next_stretch(stretch: float, utilisation: float) -> float:
    """The stretch after ten seconds of a load.

    The square root, because what is changed now shows an interval later: a controller that corrected the whole
    deviation each time would swing.
    """
    if utilisation > _AIM:
        return min(LONGEST_STRETCH, stretch * math.sqrt(utilisation / _AIM))
    return max(1.0, _EASED * stretch) if utilisation < _CALM else stretch


class Pacing:
    """Moves the intervals of hints: by the stretch, then to a moment of the book."""

    def __init__(self, book: Book, draw: Draw) -> None:
        self.book = book
        self._draw = draw
        self._load = Load()
        self.stretch = 1.0

    def paced(self, interval_s: float, *, background: bool, now: float, floor_s: float = 0.0) -> float:
        """The interval to give to a device that is in the background or not; its arrival is booked."""
        stretch = self.stretch
        if stretch > 1.0:
            interval_s *= stretch if background else max(1.0, stretch / _FOREGROUND_FROM)
        return self.book.choose(now, interval_s, self._draw, floor_s)

    def bear(self, load: Load) -> None:
        """Ten seconds of this load are over."""
        self._load = load
        self.stretch = next_stretch(self.stretch, max(load))

    def describe(self) -> str:
        """What pacing does now, for people."""
        utilisation = max(self._load)
        what = Load._fields[self._load.index(utilisation)]
        foreground = max(1.0, self.stretch / _FOREGROUND_FROM)
        return (
            f"load is {utilisation:.0%} of what can be borne ({what}), which stretches intervals in the background "
            f"{self.stretch:.2f} times and in the foreground {foreground:.2f} times"
        )
