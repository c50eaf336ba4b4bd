"""Plays the day of a device that polls, receives pushes, and streams while in the foreground."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from dataclasses import dataclass
from enum import IntEnum

from syncbeat_devtools.simulate.engine.tally import (
    AWAKE_S,
    EMPTY_POLL_BYTES,
    FETCH_BYTES,
    PUSH_BYTES,
    STREAM_MINUTE_BYTES,
    STREAM_OPEN_BYTES,
    Tally,
)
from syncbeat_devtools.simulate.fleet.devices import DAY, Device
from syncbeat_devtools.simulate.fleet.push_channel import IOS, Handset, PushChannel
from syncbeat_devtools.simulate.policies.settings import Settings
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
    """Event kinds, in the order in which events of the same moment are processed."""

    CHANGE = 0
    FOREGROUND = 1
    BACKGROUND = 2
    ARRIVAL = 3
    TRAIL = 4
    SEND = 5
    CHECK_ANSWER = 6
    POLL = 7


@dataclass(slots=True)
class _Wake:
    """A wake-up that no fetch has followed yet, and the time it was last sent."""

    resends: int = 0
    sent_at: float | None = None


class HybridDay:
    """The event loop of one device's day. Server state is kept as the server keeps it, and `sync.policy` decides."""

    def __init__(
        self, device: Device, handset: Handset, settings: Settings, tally: Tally, chance: random.Random
    ) -> None:
        conditions, tuning = settings.conditions, settings.tuning
        self._device, self._handset, self._conditions, self._tuning = device, handset, conditions, tuning
        self._tally, self._chance = tally, chance
        self._channel = PushChannel(conditions, handset, chance)
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
        self._awake_at = -math.inf
        self._signal = _learned_signal(device, tuning)
        self._reach = _learned_reach(device, handset)

    def run(self) -> None:
        """Play the day. Changes not delivered by midnight count as delivered by the next arrival or poll."""
        tally = self._tally
        tally.devices += 1
        for at in self._device.changes:
            self._schedule(at, _Kind.CHANGE)
        if self._handset.reachable or self._conditions.unreached_stream:
            for start, end in self._device.sessions:
                opened = start + self._conditions.watched_after_s
                if self._chance.random() < self._conditions.watched and opened < end:
                    self._schedule(opened, _Kind.FOREGROUND)
                    self._schedule(end, _Kind.BACKGROUND)
        self._schedule_poll(0.0, share=self._chance.random())
        steps = {
            _Kind.CHANGE: self._change,
            _Kind.FOREGROUND: self._foreground,
            _Kind.BACKGROUND: self._background,
            _Kind.ARRIVAL: self._arrival,
            _Kind.TRAIL: self._trail,
            _Kind.SEND: self._send_due,
            _Kind.CHECK_ANSWER: self._check_answer,
            _Kind.POLL: self._poll,
        }
        while self._events:
            at, kind, _, number = heapq.heappop(self._events)
            if at >= DAY:
                break
            steps[kind](at, number)
        self._midnight()

    @property
    def _can_resend(self) -> bool:
        """Tell if its system lets a wake-up be sent again: iOS only for an app in the foreground."""
        return self._handset.platform != IOS or self._streaming

    @property
    def _believed_reachable(self) -> bool:
        """Tell if the server believes that pushes reach it."""
        return push_reach.answer_rate(self._reach.answered, self._reach.missed) >= push_reach.REACHABLE_RATE

    def _schedule(self, at: float, kind: _Kind, number: int = 0) -> None:
        heapq.heappush(self._events, (at, kind, next(self._order), number))

    # Events of the device.

    def _change(self, now: float, _: int) -> None:
        self._committed += 1
        self._signal = scope_signal.signal_after_change(self._signal, self._tuning.prior, now)._replace(triggered=1.0)
        if self._streaming:
            self._tally.stream_messages += 1
            self._count(now, FETCH_BYTES)
            self._deliver(now + self._conditions.stream_s, now)
        if now >= self._window_until:
            self._trigger(now)
        elif not self._trailing:
            self._trailing = True
            self._schedule(self._window_until, _Kind.TRAIL)

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
            # It already has the change that the push announces, so it makes no request; but it was woken.
            self._count_wakeup(now)
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

    # Actions of the server.

    def _trigger(self, now: float) -> None:
        self._window_until = now + self._conditions.window_s
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
        free_at = self._channel.next_allowed_at(now)
        if free_at > now:
            self._schedule(free_at, _Kind.SEND, number)
            return
        arrives_at = self._channel.send(now)
        self._wake.sent_at = now
        self._tally.pushes += 1
        self._tally.tried += self._believed_reachable
        self._tally.resends += self._wake.resends > 0
        self._tally.traffic_bytes += PUSH_BYTES
        if arrives_at is not None:
            self._schedule(arrives_at, _Kind.ARRIVAL, self._wake.resends)
        self._schedule(now + _RULE.wait_s(self._wake.resends), _Kind.CHECK_ANSWER, number)

    def _check_answer(self, now: float, number: int) -> None:
        wake = self._wake
        if wake is None or number != self._wake_number:
            return
        self._tally.missed += self._believed_reachable
        if not self._can_resend or next_resend_s(wake.resends, _RULE) is None:
            self._tally.lost += self._believed_reachable and self._can_resend
            self._end_wake(now, answered=0.0)
            return
        wake.resends += 1
        self._send_due(now, number)

    def _answer(self, now: float, wake: _Wake) -> None:
        # It is unknown if the device fetched because of the push or by chance.
        if wake.sent_at is None:
            self._wake, self._wake_number = None, self._wake_number + 1
            return
        usual = push_reach.answer_rate(self._reach.answered, self._reach.missed)
        self._end_wake(now, push_reach.push_credit(usual, now - wake.sent_at))

    def _end_wake(self, now: float, answered: float) -> None:
        self._tally.woken += self._believed_reachable and self._can_resend
        self._wake, self._wake_number = None, self._wake_number + 1
        reach = self._reach
        kept = 0.5 ** ((now - reach.at) / REACH_HALF_LIFE_S)
        self._reach = Reach(reach.usable, reach.answered * kept + answered, reach.missed * kept + 1.0 - answered, now)

    def _deliver(self, seen_at: float, now: float) -> None:
        """Deliver all committed changes at `seen_at`, and schedule the next poll by a new hint."""
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
        situation = Situation((scope,), activity, self._reach, self._streaming, self._can_resend)
        wait = hint.decide_interval(situation, self._tuning, now).interval_s * share
        self._hint_number += 1
        self._schedule(now + max(wait, self._conditions.floor_s(self._handset.platform)), _Kind.POLL, self._hint_number)

    # Counts.

    def _count(self, now: float, size: int) -> None:
        self._tally.request(now)
        self._tally.traffic_bytes += size
        self._count_wakeup(now)

    def _count_wakeup(self, now: float) -> None:
        self._tally.wakeups += now - self._awake_at > AWAKE_S
        self._awake_at = now

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


def _learned_signal(device: Device, tuning: Tuning) -> Signal:
    known = scope_signal.initial_signal(device.born)._replace(presence_at=device.born, triggered=1.0)
    for at in device.history:
        known = scope_signal.signal_after_change(known, tuning.prior, at)
    return known._replace(triggered=1.0)


def _learned_reach(device: Device, handset: Handset) -> Reach:
    """Return the reachability that the wake-ups of earlier days have shown, one per change outside of streams."""
    kept = sum(0.5 ** (-at / REACH_HALF_LIFE_S) for at in device.history)
    # A session causes few wake-ups, because its changes go through the stream. A third of all is a cautious guess.
    tried = kept / 3.0
    if handset.reachable:
        return Reach(usable=True, answered=tried, missed=0.0, at=0.0)
    return Reach(usable=True, answered=0.0, missed=tried, at=0.0)
