"""Plays a day of a log's device that only polls.

What a server knows does not depend on a device's polls, since it learns of each change at its commit. So the interval
that a poll would be given is a function of the moment alone. It is tabulated once, and then played with several phases
of the polls: the mean staleness of a few changes is known that much better.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

from syncbeat_devtools.simulate.engine.tally import AWAKE_S, EMPTY_POLL_BYTES, FETCH_BYTES, Tally
from syncbeat_devtools.simulate.fleet.devices import DAY, Device
from syncbeat_devtools.simulate.policies.log_schedules import LogSchedule

_MIN_PHASES, _MAX_PHASES, _WANTED_DELAYS = 8, 128, 40_000

_GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0
"""Multiples of it are spread evenly, also over any part of an interval; even steps would meet in shorter ones."""
_AT_CAP = 1.0 - 1e-9
_LEAST_STEP_S = 1e-3


class Intervals:
    """The interval that a poll is given, for each moment of a device's day."""

    def __init__(self, device: Device, schedule: LogSchedule) -> None:
        self.starts: list[float] = []
        self.waits_s: list[float] = []
        now = max(0.0, device.born)
        while now < DAY:
            wait_s, until = schedule.ask(now)
            if not self.waits_s or wait_s != self.waits_s[-1]:
                self.starts.append(now)
                self.waits_s.append(wait_s)
            now = max(until, now + _LEAST_STEP_S)


def play_log_day(device: Device, intervals: Intervals, tally: Tally, phase: float, cap_s: float) -> None:
    """Let the device poll for a day at these intervals, from midnight on or from the moment it joins.

    At midnight it is in the middle of an interval, of which the fraction `phase` is left. Polls after the day are not
    counted, but their changes are. A poll is `capped` if it came since the longest interval, `cap_s`, had passed.
    """
    changes, starts, waits_s = device.changes, intervals.starts, intervals.waits_s
    count, seen, last = len(changes), 0, len(starts) - 1
    tally.devices += 1
    if device.born >= 0.0:
        # It lists its scopes when it joins; as any first poll, that comes of no interval.
        at, wait_s, place = device.born + phase * waits_s[0], 0.0, 0
        _count(tally, 0.0, 1, capped=False)
    else:
        wait_s, place = waits_s[0], 0
        at = phase * wait_s
    while True:
        before = seen
        while seen < count and changes[seen] <= at:
            tally.delays.append(at - changes[seen])
            seen += 1
        if at >= DAY:
            return
        _count(tally, wait_s, 1, capped=wait_s >= cap_s * _AT_CAP)
        tally.traffic_bytes += FETCH_BYTES if seen > before else EMPTY_POLL_BYTES
        if place < last and starts[place + 1] <= at:
            place = bisect_right(starts, at, place + 1) - 1
        wait_s = waits_s[place]
        stop = starts[place + 1] if place < last else DAY
        if seen < count and changes[seen] < stop:
            stop = changes[seen]
        # Polls that find nothing, before the next change and the next interval.
        empty = math.ceil((stop - at) / wait_s) - 1 if stop > at + wait_s else 0
        if empty > 0:
            _count(tally, wait_s, empty, capped=wait_s >= cap_s * _AT_CAP)
            tally.traffic_bytes += empty * EMPTY_POLL_BYTES
            at += empty * wait_s
        at += wait_s


class Plays(NamedTuple):
    """Tells how often a device's day is played: with so many phases, from a random one of each seed on."""

    seeds: tuple[int, ...]
    phases: int = _MIN_PHASES

    @property
    def total(self) -> int:
        """Return the plays of each device."""
        return len(self.seeds) * self.phases

    def of(self, name: str) -> Iterator[float]:
        """Return the phases of a device of this name."""
        for seed in self.seeds:
            # The same for every policy, so that rows differ only by the policies' decisions.
            first = random.Random(f"{seed}:{name}").random()
            yield from ((first + number * _GOLDEN) % 1.0 for number in range(self.phases))


def enough_plays(seeds: tuple[int, ...], changes: int) -> Plays:
    """Return the plays with which so many changes give a mean to within half a per cent, if they are not very few."""
    return Plays(seeds, min(_MAX_PHASES, max(_MIN_PHASES, _WANTED_DELAYS // max(1, changes * len(seeds)))))


def _count(tally: Tally, wait_s: float, polls: int, *, capped: bool) -> None:
    """Count polls after this interval."""
    tally.polls += polls
    if capped:
        tally.capped += polls
    if wait_s > AWAKE_S:
        tally.wakeups += polls
