"""Levels the load that hints cause: stretches intervals under load, and moves each to a moment few devices share. Pure.

Intervals are stretched when the load nears what can be served, those of devices in the background first.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from syncbeat_server.sync.policy.arrival_book import ArrivalBook, Draw

MAX_STRETCH = 12.0

_HIGH_LOAD, _LOW_LOAD = 0.8, 0.6  # of the limit: between them the stretch stays
_EASED = 0.95  # a step back towards no stretch
_FOREGROUND_FROM = 3.0  # stretch up to which intervals in the foreground stay as they are


class Load(NamedTuple):
    """Holds figures of load, each over its limit: at 1 it is full. One that is not measured is 0.

    `rate`: requests a second of all processes; `promised`: those that the arrival book foresees; `in_flight`: calls
    under way here; `lag`: the delay of the event loop; `pool`: waits for a connection of the database.
    """

    rate: float = 0.0
    promised: float = 0.0
    in_flight: float = 0.0
    lag: float = 0.0
    pool: float = 0.0


def next_stretch(stretch: float, utilisation: float) -> float:
    """Return the stretch after ten seconds at a utilisation.

    It moves by the square root, because a change now shows an interval later: a controller that corrected the whole
    deviation each time would oscillate.
    """
    if utilisation > _HIGH_LOAD:
        return min(MAX_STRETCH, stretch * math.sqrt(utilisation / _HIGH_LOAD))
    return max(1.0, _EASED * stretch) if utilisation < _LOW_LOAD else stretch


class LoadLeveler:
    """Moves the intervals of hints: by the stretch, then to a moment of the arrival book."""

    def __init__(self, book: ArrivalBook, draw: Draw) -> None:
        self.book = book
        self._draw = draw
        self._load = Load()
        self.stretch = 1.0

    def pace(self, interval_s: float, *, background: bool, now: float, floor_s: float = 0.0) -> float:
        """Return the interval to give to a device, whose arrival is booked. `now` is in unix seconds."""
        stretch = self.stretch
        if stretch > 1.0:
            interval_s *= stretch if background else max(1.0, stretch / _FOREGROUND_FROM)
        return self.book.book_arrival(now, interval_s, self._draw, floor_s)

    def adjust(self, load: Load) -> None:
        """Adjust the stretch to the load of the last ten seconds."""
        self._load = load
        self.stretch = next_stretch(self.stretch, max(load))

    def describe(self) -> str:
        """Describe the current pacing for people."""
        utilisation = max(self._load)
        what = Load._fields[self._load.index(utilisation)]
        foreground = max(1.0, self.stretch / _FOREGROUND_FROM)
        return (
            f"load is {utilisation:.0%} of what can be borne ({what}), which stretches intervals in the background "
            f"{self.stretch:.2f} times and in the foreground {foreground:.2f} times"
        )
