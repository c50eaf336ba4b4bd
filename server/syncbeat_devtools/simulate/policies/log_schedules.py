"""Schedules of a log's devices: the server's own decisions, scope by scope, from what it had learned at each moment.

Nothing here reads a line that is later than the moment asked for.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, Protocol

from syncbeat_devtools.simulate.fleet.devices import DAY, Device
from syncbeat_devtools.simulate.fleet.log_days import DayKey, LogDay, log_day
from syncbeat_devtools.simulate.policies.schedules import Schedule
from syncbeat_server.sync.model import Activity, ScopeState, Signal
from syncbeat_server.sync.policy import hint, scope_signal
from syncbeat_server.sync.policy.hint import Situation
from syncbeat_server.sync.policy.hint_inputs import Tuning
from syncbeat_server.sync.policy.scope_prior import Prior

_MAX_POLLS, _FIRST_SHARE, _DRIFT = 64.0, 0.7, 0.03
"""A policy that has heard nothing is asked again after so many of its intervals, or once its answer may have moved by
this share; the first time after a share of an interval.
"""
_EPOCH = "1"


class Answer(NamedTuple):
    """Holds the interval after a poll: the same, or nearly, for any poll before `until` (second of the day)."""

    wait_s: float
    until: float


class LogSchedule(Protocol):
    """Chooses the intervals between a device's polls, asked in the order of time: at no poll, but at any moment."""

    def ask(self, now: float) -> Answer:
        """Return the interval after a poll at this second of the day."""
        ...


class Steadiness:
    """Tells for how long an interval that changes slowly holds, nearly."""

    def __init__(self) -> None:
        self._wait_s, self._asked_at, self._heard = 0.0, 0.0, -1

    def answer(self, now: float, wait_s: float, heard: int, next_at: float) -> Answer:
        """Return the answer at `now`; so many events were `heard`, and the next comes at `next_at`."""
        holds_s = _FIRST_SHARE * wait_s
        if heard == self._heard:
            drift = abs(wait_s / self._wait_s - 1.0)
            longest_s = _MAX_POLLS * wait_s
            elapsed = now - self._asked_at
            holds_s = longest_s if drift * longest_s <= _DRIFT * elapsed else max(holds_s, _DRIFT / drift * elapsed)
        self._wait_s, self._asked_at, self._heard = wait_s, now, heard
        return Answer(wait_s, min(next_at, now + holds_s))


class HintSchedule:
    """The server's hints for a device that only polls, from the signals of all of its scopes."""

    def __init__(self, day: LogDay, device: Device, tuning: Tuning) -> None:
        self._start, self._tuning = day.key.start, tuning
        self._states: dict[int, ScopeState] = {}
        self._events = _events(day, device, tuning.prior)
        self._moments = [event[0] for event in self._events]
        self._heard = 0
        self._scopes: Sequence[ScopeState] = ()
        self._steadiness = Steadiness()

    def ask(self, now: float) -> Answer:
        """Return the interval after a poll."""
        heard = bisect_right(self._moments, now, self._heard)
        if heard > self._heard:
            for _, scope, state in self._events[self._heard : heard]:
                self._states.pop(scope, None)
                self._states[scope] = state
            self._heard, self._scopes = heard, tuple(reversed(self._states.values()))
        wait_s = hint.decide_interval(Situation(self._scopes, Activity()), self._tuning, self._start + now).interval_s
        next_at = self._moments[heard] if heard < len(self._moments) else DAY
        return self._steadiness.answer(now, wait_s, heard, next_at)


class EvenSchedule:
    """A policy whose interval never changes."""

    def __init__(self, schedule: Schedule) -> None:
        self._wait_s = schedule.interval(0.0, news=False)

    def ask(self, now: float) -> Answer:
        """Return the interval after a poll."""
        return Answer(self._wait_s, DAY)


def _events(day: LogDay, device: Device, prior: Prior) -> list[tuple[float, int, ScopeState]]:
    """Return what the server learns of a device's scopes, in the order of time: only their last state before the day.

    A scope counts as the device's since it follows it.
    """
    versions = scope_versions(day.key, prior)
    found: list[tuple[float, int, ScopeState]] = []
    for scope, since in day.follows[device.index]:
        name = day.scopes[scope].scope
        before: tuple[float, int, ScopeState] | None = None
        for at, count, signal in versions[scope]:
            event = max(at, since), scope, ScopeState(name, _EPOCH, count, signal)
            if at <= since:
                before = event
                continue
            if before is not None:
                found.append(before)
                before = None
            found.append(event)
        if before is not None:
            found.append(before)
    found.sort(key=lambda event: event[:2])
    return found


@lru_cache(maxsize=8)
def scope_versions(key: DayKey, prior: Prior) -> tuple[tuple[tuple[float, int, Signal], ...], ...]:
    """Return for each scope of a day its signals in the order of time, and how many changes they have heard.

    The first is that of midnight, or of the scope's creation on the day; each change of the day makes another.
    """
    return tuple(_versions(feed.born, feed.changes, key.start, prior) for feed in log_day(key).scopes)


def _versions(
    born: float, changes: Sequence[float], start: float, prior: Prior
) -> tuple[tuple[float, int, Signal], ...]:
    signal = scope_signal.initial_signal(start + born)._replace(presence_at=start + born)
    found = [(born, 0, signal)]
    for count, at in enumerate(changes, start=1):
        signal = scope_signal.signal_after_change(signal, prior, start + at)
        version = at, count, signal
        if at < 0.0:
            found[-1] = version
        else:
            found.append(version)
    return tuple(found)
