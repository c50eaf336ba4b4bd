"""A day of a device that polls, is pushed to, and streams while somebody looks: the event loop, on a fake clock."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from dataclasses import dataclass
from enum import IntEnum

from syncbeat_devtools.simulate.fleet import DAY, Device
from syncbeat_devtools.simulate.settings import Settings
from syncbeat_devtools.simulate.tally import (
    AWAKE_S,
    EMPTY_POLL_BYTES,
    FETCH_BYTES,
    PUSH_BYTES,
    STREAM_MINUTE_BYTES,
    STREAM_OPEN_BYTES,
    Tally,
)
from syncbeat_devtools.simulate.waking import IOS, Air, Handset
from syncbeat_server.directory.model import REACH_HALF_LIFE_S
from syncbeat_server.push.policy import reachability as push_reach
from syncbeat_server.push.policy.resend import ResendRule, next_resend_s
from syncbeat_server.sync.model import Activity, ActivityState, Reach, ScopeState, Signal
from syncbeat_server.sync.policy import hint, scope_signal
from syncbeat_server.sync.policy.hint import Situation
from syncbeat_server.sync.policy.hint_inputs import Tuning

_RULE = ResendRule()
_BACKGROUND = Activity(ActivityState.BACKGROUND)
_FOREGROUND = Activity(ActivityState.FOREGROUND)
_PING_S = 60.0
_EPOCH = "1"


class _Kind(IntEnum):
    """Events, in the order in which those of one moment happen."""

    CHANGE = 0
    FOREGROUND = 1
    BACKGROUND = 2
    ARRIVAL = 3
    TRAIL = 4
    SEND = 5
    LOOK = 6
    POLL = 7


@dataclass(slots=True)
class _Wake:
    """A wake-up that no fetch has followed yet, and when it was last sent."""

    resends: int = 0
    sent_at: float | None = None


class HybridDay:
    """One device's day. What the server knows of it is kept as the server keeps it, and `sync.policy` decides."""

    def __init__(
        self, device: Device, handset: Handset, settings: Settings, tally: Tally, chance: random.Random
    ) -> None:
        waking, tuning = settings.waking, settings.tuning
        self._device, self._handset, self._waking, self._tuning = device, handset, waking, tuning
        self._tally, self._chance = tally, chance
        self._air = Air(waking, handset, chance)
        self._events: list[tuple[float, _Kind, int, int]] = []
        self._order = itertools.count()
        self._committed = self._delivered = 0
        self._streaming = False
        self._streaming_since = 0.0
        self._hint_number = 0
        self._wake: _Wake | None = None
        self._wake_number = 0
        self._window_until = -math.inf
        self._trailing = False
        self._roused_at = -math.inf
        self._signal = _learned(device, tuning)
        self._reach = _known_reach(device, handset)

    def run(self) -> None:
        """Play the day. What is not there at midnight counts as if it came then or with the poll after it."""
        tally = self._tally
        tally.devices += 1
        for at in self._device.changes:
            self._at(at, _Kind.CHANGE)
        if self._handset.reachable or self._waking.unreached_stream:
            for start, end in self._device.sessions:
                opened = start + self._waking.watched_after_s
                if self._chance.random() < self._waking.watched and opened < end:
                    self._at(opened, _Kind.FOREGROUND)
                    self._at(end, _Kind.BACKGROUND)
        self._schedule_poll(0.0, share=self._chance.random())
        steps = {
            _Kind.CHANGE: self._change,
            _Kind.FOREGROUND: self._foreground,
            _Kind.BACKGROUND: self._background,
            _Kind.ARRIVAL: self._arrival,
            _Kind.TRAIL: self._trail,
            _Kind.SEND: self._send_due,
            _Kind.LOOK: self._look,
            _Kind.POLL: self._poll,
        }
        while self._events:
            at, kind, _, number = heapq.heappop(self._events)
            if at >= DAY:
                break
            steps[kind](at, number)
        self._midnight()

    @property
    def _woken_again(self) -> bool:
        """Whether its system lets a wake-up be sent again: iOS only for an app that is on the screen."""
        return self._handset.platform != IOS or self._streaming

    @property
    def _known(self) -> bool:
        """Whether the server takes it for one that pushes reach."""
        return push_reach.share(self._reach.answered, self._reach.missed) >= push_reach.KNOWN_SHARE

    def _at(self, at: float, kind: _Kind, number: int = 0) -> None:
        heapq.heappush(self._events, (at, kind, next(self._order), number))

    # What happens to the device.

    def _change(self, now: float, _: int) -> None:
        self._committed += 1
        self._signal = scope_signal.signal_after_change(self._signal, self._tuning.prior, now)._replace(triggered=1.0)
        if self._streaming:
            self._tally.stream_messages += 1
            self._count(now, FETCH_BYTES)
            self._deliver(now + self._waking.stream_s, now)
        if now >= self._window_until:
            self._trigger(now)
        elif not self._trailing:
            self._trailing = True
            self._at(self._window_until, _Kind.TRAIL)

    def _foreground(self, now: float, _: int) -> None:
        self._tally.stream_opens += 1
        self._count(now, STREAM_OPEN_BYTES)
        self._streaming, self._streaming_since = True, now
        self._deliver(now, now)

    def _background(self, now: float, _: int) -> None:
        self._streaming = False
        self._count_stream(now)
        self._schedule_poll(now)

    def _arrival(self, now: float, number: int) -> None:
        if self._delivered == self._committed:
            # It has all that the push tells of, so it asks nothing; but it was woken.
            self._rouse(now)
            self._tally.needless_resends += number > 0
            return
        self._tally.fetches += 1
        self._count(now, FETCH_BYTES)
        self._deliver(now, now)

    def _poll(self, now: float, number: int) -> None:
        if number != self._hint_number or self._streaming:
            return
        if self._reach.usable and self._handset.reachable:
            self._tally.safety_polls += 1
        else:
            self._tally.polls += 1
        self._count(now, FETCH_BYTES if self._delivered < self._committed else EMPTY_POLL_BYTES)
        self._deliver(now, now)

    # What the server does.

    def _trigger(self, now: float) -> None:
        self._window_until = now + self._waking.window_s
        if self._wake is None and self._reach.usable and not self._streaming:
            self._wake = _Wake()
            self._send_due(now, self._wake_number)

    def _trail(self, now: float, _: int) -> None:
        self._trailing = False
        if self._delivered == self._committed:
            self._window_until = now
        else:
            self._trigger(now)

    def _send_due(self, now: float, number: int) -> None:
        if self._wake is None or number != self._wake_number:
            return
        free_at = self._air.free_at(now)
        if free_at > now:
            self._at(free_at, _Kind.SEND, number)
            return
        arrives_at = self._air.send(now)
        self._wake.sent_at = now
        self._tally.pushes += 1
        self._tally.tried += self._known
        self._tally.resends += self._wake.resends > 0
        self._tally.traffic_bytes += PUSH_BYTES
        if arrives_at is not None:
            self._at(arrives_at, _Kind.ARRIVAL, self._wake.resends)
        self._at(now + _RULE.wait_s(self._wake.resends), _Kind.LOOK, number)

    def _look(self, now: float, number: int) -> None:
        wake = self._wake
        if wake is None or number != self._wake_number:
            return
        self._tally.missed += self._known
        if not self._woken_again or next_resend_s(wake.resends, _RULE) is None:
            self._tally.lost += self._known and self._woken_again
            self._end_wake(now, answered=0.0)
            return
        wake.resends += 1
        self._send_due(now, number)

    def _answer(self, now: float, wake: _Wake) -> None:
        # Nobody says whether the push or chance made it fetch.
        if wake.sent_at is None:
            self._wake, self._wake_number = None, self._wake_number + 1
            return
        usual = push_reach.share(self._reach.answered, self._reach.missed)
        self._end_wake(now, push_reach.belief(usual, now - wake.sent_at))

    def _end_wake(self, now: float, answered: float) -> None:
        self._tally.woken += self._known and self._woken_again
        self._wake, self._wake_number = None, self._wake_number + 1
        reach = self._reach
        kept = 0.5 ** ((now - reach.at) / REACH_HALF_LIFE_S)
        self._reach = Reach(reach.usable, reach.answered * kept + answered, reach.missed * kept + 1.0 - answered, now)

    def _deliver(self, seen_at: float, now: float) -> None:
        """The device has all that is committed from `seen_at` on, and a new hint."""
        for committed_at in self._device.changes[self._delivered : self._committed]:
            self._tally.delays.append(seen_at - committed_at)
        self._delivered = self._committed
        if self._wake is not None:
            self._answer(now, self._wake)
        if not self._streaming:
            self._schedule_poll(now)

    def _schedule_poll(self, now: float, share: float = 1.0) -> None:
        activity = _FOREGROUND if self._streaming else _BACKGROUND
        scope = ScopeState("scope", _EPOCH, self._committed, self._signal)
        situation = Situation((scope,), activity, self._reach, self._streaming, self._woken_again)
        wait = hint.decide_interval(situation, self._tuning, now).interval_s * share
        self._hint_number += 1
        self._at(now + max(wait, self._waking.floor_s(self._handset.platform)), _Kind.POLL, self._hint_number)

    # What is counted.

    def _count(self, now: float, size: int) -> None:
        self._tally.request(now)
        self._tally.traffic_bytes += size
        self._rouse(now)

    def _rouse(self, now: float) -> None:
        self._tally.wakeups += now - self._roused_at > AWAKE_S
        self._roused_at = now

    def _count_stream(self, now: float) -> None:
        pings = int((now - self._streaming_since) / _PING_S)
        self._tally.wakeups += pings
        self._tally.traffic_bytes += pings * STREAM_MINUTE_BYTES

    def _midnight(self) -> None:
        if self._streaming:
            self._count_stream(DAY)
        rest = [at for at, kind, _, number in self._events if kind is _Kind.POLL and number == self._hint_number]
        rest += [at for at, kind, _, _ in self._events if kind is _Kind.ARRIVAL]
        self._deliver_late(min(rest, default=DAY))

    def _deliver_late(self, seen_at: float) -> None:
        for committed_at in self._device.changes[self._delivered : self._committed]:
            self._tally.delays.append(max(DAY, seen_at) - committed_at)


def _learned(device: Device, tuning: Tuning) -> Signal:
    known = scope_signal.initial_signal(device.born)._replace(presence_at=device.born, triggered=1.0)
    for at in device.history:
        known = scope_signal.signal_after_change(known, tuning.prior, at)
    return known._replace(triggered=1.0)


def _known_reach(device: Device, handset: Handset) -> Reach:
    """What the wake-ups of the days before have told: as many as there were changes outside of streams."""
    kept = sum(0.5 ** (-at / REACH_HALF_LIFE_S) for at in device.history)
    # Wake-ups of one session are few: its changes go through the stream. A third of all is a careful guess.
    tried = kept / 3.0
    if handset.reachable:
        return Reach(usable=True, answered=tried, missed=0.0, at=0.0)
    return Reach(usable=True, answered=0.0, missed=tried, at=0.0)
