"""The half hour after an outage: all devices ask in the same second, and are told when to come again."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from enum import StrEnum

from syncbeat_devtools.simulate.fleet import FleetSpec, make_device
from syncbeat_devtools.simulate.schedules import AdaptiveSchedule
from syncbeat_devtools.simulate.settings import Settings
from syncbeat_server.sync.policy.arrival_book import ArrivalBook

_OVER_AT, _WATCHED_S, _CALM_AFTER_S = 12 * 3600, 1800, 600
_JITTER = 0.1
_HISTORY_DAYS = 1

Place = Callable[[float, float], float]
"""In how many seconds a device shall come that is to come, at this moment, after so many."""


class Placing(StrEnum):
    """How the moments are chosen: by the server's book, by a jitter of 10 % that knows nothing, or not at all."""

    BOOKED = "booked"
    JITTERED = "jittered"
    EXACT = "exact"


@dataclass(frozen=True, slots=True)
class Aftermath:
    """Requests a second after ten minutes, until the half hour is over; the mean interval over what was wanted."""

    placing: Placing
    peak_per_s: int
    mean_per_s: float
    lengthened: float

    @property
    def peak_over_mean(self) -> float:
        """1 is level."""
        return self.peak_per_s / self.mean_per_s


def after_outage(spec: FleetSpec, seed: int, devices: int, executor: Executor) -> list[Aftermath]:
    """The same outage with each way of choosing moments."""
    under_way = [executor.submit(_aftermath, spec, seed, devices, placing) for placing in Placing]
    return [future.result() for future in under_way]


def _aftermath(spec: FleetSpec, seed: int, devices: int, placing: Placing) -> Aftermath:
    place = _placer(placing, random.Random(f"outage:{seed}"))
    schedules, changes = [], []
    for index in range(devices):
        device = make_device(spec, seed, index, devices, _HISTORY_DAYS)
        schedule = AdaptiveSchedule(Settings(1.0), device.born)
        for at in (*device.history, *(at for at in device.changes if at < _OVER_AT)):
            schedule.changed(at)
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
            schedule.changed(ahead.pop())
        wanted = schedule.interval(now, news=False)
        given = place(now, wanted)
        wanted_s, given_s = wanted_s + wanted, given_s + given
        heapq.heapreplace(coming, (now + given, index))
    calm = arrived[_CALM_AFTER_S:_WATCHED_S]
    return Aftermath(placing, max(calm), sum(calm) / len(calm), given_s / wanted_s)


def _placer(placing: Placing, chance: random.Random) -> Place:
    match placing:
        case Placing.BOOKED:
            book = ArrivalBook(float(_OVER_AT))
            return lambda now, wanted: book.book_arrival(now, wanted, chance.random)
        case Placing.JITTERED:
            return lambda now, wanted: wanted * chance.uniform(1.0 - _JITTER, 1.0 + _JITTER)
        case Placing.EXACT:
            return lambda now, wanted: wanted
