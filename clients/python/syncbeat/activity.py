"""What a device says of itself, and when it says so: what follows closely on another is said once. Pure."""

from __future__ import annotations

import math
from typing import NamedTuple

from syncbeat.pace import Backoff
from syncbeat.v1 import sync_service_pb2 as pb

_BURST = 3.0  # reports that may follow at once ...
_REFILL_S = 10.0  # ... and how long it takes until there may be one more
_IDLE_S = 60.0  # shorter idleness is told by polls alone
_URGENT_TRIES = 4
_URGENT_DELAY_S = 30.0
_MAX_IDLE_S = 366 * 86_400.0

_BACKGROUND, _FOREGROUND = pb.ACTIVITY_STATE_BACKGROUND, pb.ACTIVITY_STATE_FOREGROUND


class Standing(NamedTuple):
    """What is reported when it changes. What a stream was opened with, for its hints."""

    state: pb.ActivityState.ValueType
    network: pb.Network.ValueType
    battery_low: bool


class ActivityReports:
    """The device's activity. Times are seconds of one clock that never goes back."""

    def __init__(self, now: float) -> None:
        self.standing = Standing(_FOREGROUND, pb.NETWORK_UNSPECIFIED, battery_low=False)
        self._touched_at = now
        self._reported: Standing | None = None
        self._reported_idle_s = 0.0
        self._urgent = False
        self._urgent_backoff = Backoff(_URGENT_DELAY_S)
        self._retry_at = 0.0
        self._allowance = _BURST
        self._counted_at = now

    def show(self, now: float) -> None:
        """The app came to the screen: said at once, even if nothing else is new."""
        self._change(self.standing._replace(state=_FOREGROUND))
        self._touched_at = now
        self._urgent = True
        self._urgent_backoff.reset()

    def hide(self) -> None:
        """The app left the screen."""
        self._urgent = False
        self._change(self.standing._replace(state=_BACKGROUND))

    def connect(self, network: pb.Network.ValueType) -> None:
        """What the device is connected by now."""
        self._change(self.standing._replace(network=network))

    def charge(self, *, low: bool) -> None:
        """Whether the battery is low now."""
        self._change(self.standing._replace(battery_low=low))

    def touch(self, now: float) -> None:
        """The user did something."""
        self._touched_at = now
        if self._reported_idle_s >= _IDLE_S:
            self._retry_at = 0.0

    def message(self, now: float) -> pb.Activity:
        """The activity, for a request."""
        activity = pb.Activity(
            state=self.standing.state, network=self.standing.network, battery_low=self.standing.battery_low
        )
        activity.idle_duration.FromMilliseconds(round(self._idle_s(now) * 1000))
        return activity

    def is_news(self, now: float, *, streaming: bool) -> bool:
        """Whether the server does not know it yet. `streaming`: no poll tells it how idle the user is."""
        if self._urgent or self.standing != self._reported:
            return True
        idle_s = self._idle_s(now)
        if self._reported_idle_s >= _IDLE_S and idle_s < _IDLE_S:
            return True
        return streaming and idle_s >= max(_IDLE_S, 2 * self._reported_idle_s)

    def report_at(self, now: float, *, streaming: bool) -> float:
        """When to report, without waiting for the next poll; infinity when there is nothing to say."""
        if self._reported is None and not self._urgent:
            return math.inf  # the first poll says it
        if not self.is_news(now, streaming=streaming):
            return math.inf
        self._refill(now)
        return max(self._retry_at, now + max(0.0, 1.0 - self._allowance) * _REFILL_S)

    def sent(self, now: float) -> None:
        """A report is on its way."""
        self._refill(now)
        self._allowance = max(0.0, self._allowance - 1.0)

    def taken(self, sent: pb.Activity) -> None:
        """The server has it. What became different meanwhile is said next."""
        self._reported = Standing(sent.state, sent.network, sent.battery_low)
        self._reported_idle_s = sent.idle_duration.ToTimedelta().total_seconds()
        self._urgent = False

    def failed(self, now: float) -> None:
        """The server could not be told. That somebody looks is tried again soon, a few times; everything else is said
        in the place of the next poll."""
        self._retry_at = now + self._urgent_backoff.next_delay()
        if not self._urgent or self._urgent_backoff.failures >= _URGENT_TRIES:
            self._urgent = False
            self._retry_at = math.inf

    def _change(self, standing: Standing) -> None:
        self.standing = standing
        self._retry_at = 0.0

    def _idle_s(self, now: float) -> float:
        return min(_MAX_IDLE_S, max(0.0, now - self._touched_at))

    def _refill(self, now: float) -> None:
        self._allowance = min(_BURST, self._allowance + (now - self._counted_at) / _REFILL_S)
        self._counted_at = now
