"""A causal ceiling for logs: the square-root law with the rate that devices in the same circumstances had.

Circumstances are known at the moment: the time since the device's last change, since its own user was active, since one
of those that it shares a scope with was, and the changes of its history. The rate of each is counted on the measured
days themselves, which no server can: so it shows what these circumstances are worth to the best, a little flattered,
as rare ones are fitted to what happened.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from syncbeat_devtools.simulate.fleet.devices import DAY, Device
from syncbeat_devtools.simulate.fleet.log_days import DayKey, LogDay, log_day
from syncbeat_devtools.simulate.policies.log_schedules import Answer
from syncbeat_devtools.simulate.policies.settings import POLL_COST
from syncbeat_server.sync.policy.comparison_policies import square_root_interval
from syncbeat_server.sync.policy.interval import Bounds

_MINUTE, _HOUR = 60.0, 3600.0
_SINCE_CHANGE_S = (_MINUTE, 3 * _MINUTE, 8 * _MINUTE, 20 * _MINUTE, _HOUR, 4 * _HOUR, DAY)
_SINCE_OWN_S = (2 * _MINUTE, 6 * _MINUTE, 15 * _MINUTE, _HOUR, 4 * _HOUR, DAY)
_SINCE_PEER_S = (3 * _MINUTE, 15 * _MINUTE, _HOUR, 6 * _HOUR)
_CHANGES_A_DAY = (0.01, 0.3, 0.7, 1.5, 3.0, 6.0, 12.0)
_ASSUMED = 0.5
"""Changes at the mean rate that are added to those of each circumstance."""

CELLS = (len(_SINCE_CHANGE_S) + 1) * (len(_SINCE_OWN_S) + 1) * (len(_SINCE_PEER_S) + 1) * (len(_CHANGES_A_DAY) + 1)

Table = tuple[float, ...]


class Counts(NamedTuple):
    """Holds the changes and the seconds of each circumstance."""

    changes: array[float]
    seconds: array[float]


class Circumstances:
    """Tells the circumstances of a device in the order of time."""

    def __init__(self, day: LogDay, device: Device) -> None:
        own = day.active.get(day.names[device.index], ())
        self._moments = (
            ((*device.history, *device.changes), _SINCE_CHANGE_S),
            (own, _SINCE_OWN_S),
            (_peers(day, device), _SINCE_PEER_S),
        )
        known_days = max(1.0, min(day.key.history_days, -device.born / DAY))
        self._busy = bisect_right(_CHANGES_A_DAY, len(device.history) / known_days)

    def at(self, now: float) -> tuple[int, float]:
        """Return the cell at this second of the day, and until when it stays, at the latest until the day ends."""
        cell, until = self._busy, DAY
        for moments, edges in self._moments:
            heard = bisect_right(moments, now)
            place = len(edges)
            if heard:
                since = now - moments[heard - 1]
                place = bisect_right(edges, since)
                if place < len(edges):
                    until = min(until, moments[heard - 1] + edges[place])
            if heard < len(moments):
                until = min(until, moments[heard])
            cell = cell * (len(edges) + 1) + place
        return cell, max(until, now + 1e-6)


class HindsightSchedule:
    """The square-root law with the rates of a table."""

    def __init__(self, table: Table, circumstances: Circumstances, price: float, bounds: Bounds) -> None:
        self._table, self._circumstances, self._price, self._bounds = table, circumstances, price, bounds

    def ask(self, now: float) -> Answer:
        """Return the interval after a poll."""
        cell, until = self._circumstances.at(now)
        return Answer(square_root_interval(self._table[cell], self._price, POLL_COST, self._bounds), until)


def count_circumstances(key: DayKey) -> Counts:
    """Return the changes and seconds of each circumstance on a day."""
    day = log_day(key)
    changes, seconds = array("d", bytes(8 * CELLS)), array("d", bytes(8 * CELLS))
    for device in day.devices:
        circumstances = Circumstances(day, device)
        now, coming, count = max(0.0, device.born), 0, len(device.changes)
        while now < DAY:
            cell, until = circumstances.at(now)
            seconds[cell] += until - now
            while coming < count and device.changes[coming] <= until:
                changes[cell] += 1.0
                coming += 1
            now = until
    return Counts(changes, seconds)


def make_table(days: Sequence[Counts]) -> Table:
    """Return the changes a second of each circumstance."""
    changes = [sum(day.changes[cell] for day in days) for cell in range(CELLS)]
    seconds = [sum(day.seconds[cell] for day in days) for cell in range(CELLS)]
    mean = max(1.0, sum(changes)) / max(1.0, sum(seconds))
    return tuple((count + _ASSUMED) / (span + _ASSUMED / mean) for count, span in zip(changes, seconds, strict=True))


def _peers(day: LogDay, device: Device) -> Sequence[float]:
    """Return when those were active that the device shares a scope with, each since then."""
    name = day.names[device.index]
    since: dict[str, float] = {}
    for scope, followed in day.follows[device.index]:
        feed = day.scopes[scope]
        for at, writer in zip(feed.changes, feed.writers, strict=True):
            if writer != name:
                start = max(at, followed)
                if writer not in since or start < since[writer]:
                    since[writer] = start
    return sorted(at for writer, start in since.items() for at in day.active.get(writer, ()) if at >= start)
