"""Simulates the half hour after an outage: all devices poll in the same second, and are told when to poll next."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from enum import StrEnum

from syncbeat_devtools.simulate.fleet.devices import FleetSpec, make_device
from syncbeat_devtools.simulate.policies.schedules import AdaptiveSchedule
from syncbeat_devtools.simulate.policies.settings import Settings
from syncbeat_server.sync.policy.arrival_book import ArrivalBook

_OVER_AT, _WATCHED_S, _CALM_AFTER_S = 12 * 3600, 1800, 600
_JITTER = 0.1
_HISTORY_DAYS = 1

Place = Callable[[float, float], float]
"""Returns the seconds until a device polls next, given the current time and the wanted interval."""


class Placement(StrEnum):
    """The ways of choosing the next poll: by the server's book, with a random jitter of 10 %, or exactly as wanted."""

    BOOKED = "booked"
    JITTERED = "jittered"
    EXACT = "exact"


@dataclass(frozen=True, slots=True)
class OutageOutcome:
    """The load from ten minutes after the outage to the half hour.

    `mean_per_s` and `peak_per_s` are requests per second; `lengthened` is the mean interval over the wanted one.
    """

    placement: Placement
    peak_per_s: int
    mean_per_s: float
    lengthened: float

    @property
    def peak_over_mean(self) -> float:
        """Return the peak over the mean rate; 1 is a level load."""
        return self.peak_per_s / self.mean_per_s


def simulate_outage(spec: FleetSpec, seed: int, devices: int, executor: Executor) -> list[OutageOutcome]:
    """Play the same outage with each placement."""
    under_way = [executor.submit(_simulate, spec, seed, devices, placement) for placement in Placement]
    return [future.result() for future in under_way]


def _simulate(spec: FleetSpec, seed: int, devices: int, placement: Placement) -> OutageOutcome:
    place = placer(placement, random.Random(f"outage:{seed}"))
    schedules, changes = [], []
    for index in range(devices):
        device = make_device(spec, seed, index, devices, _HISTORY_DAYS)
        schedule = AdaptiveSchedule(Settings(1.0), device.born)
        for at in (*device.history, *(at for at in device.changes if at < _OVER_AT)):
            schedule.on_change(at)
        schedules.append(schedule)
        changes.append([at for at in reversed(device.changes) if at >= _OVER_AT])
    end = _OVER_AT + _WATCHED_S
    coming = [(float(_OVER_AT), index) for index in range(devices)]
    arrived = [0] * (_WATCHED_S + 1)
    wanted_s = given_s = 0.0
    while coming[0][0] < end:
        now, index = coming[0]
        arrived[int(now) - _OVER_AT] += 1
        schedule, ahead = schedules[index], changes[index]
        while ahead and ahead[-1] <= now:
            schedule.on_change(ahead.pop())
        wanted = schedule.interval(now, news=False)
        given = place(now, wanted)
        wanted_s, given_s = wanted_s + wanted, given_s + given
        heapq.heapreplace(coming, (now + given, index))
    calm = arrived[_CALM_AFTER_S:_WATCHED_S]
    return OutageOutcome(placement, max(calm), sum(calm) / len(calm), given_s / wanted_s)


def placer(placement: Placement, chance: random.Random) -> Place:
    """Return the function that chooses the seconds until the next poll: `(now, wanted) -> given`."""
    match placement:
        case Placement.BOOKED:
            book = ArrivalBook(float(_OVER_AT))
            return lambda now, wanted: book.book_arrival(now, wanted, chance.random)
        case Placement.JITTERED:
            return lambda now, wanted: wanted * chance.uniform(1.0 - _JITTER, 1.0 + _JITTER)
        case Placement.EXACT:
            return lambda now, wanted: wanted
