"""Tracks the activity of a device and schedules its reports: changes in quick succession are sent as one. Pure."""

from __future__ import annotations

import math
from typing import NamedTuple

from syncbeat.backoff import Backoff
from syncbeat.v1 import sync_service_pb2 as pb

_BURST = 3.0  # reports that may follow each other at once ...
_REFILL_S = 10.0  # ... and the time until there may be one more
_IDLE_S = 60.0  # a shorter idle time is reported by polls alone
_URGENT_ATTEMPTS = 4
_URGENT_DELAY_S = 30.0
_MAX_IDLE_S = 366 * 86_400.0

_BACKGROUND, _FOREGROUND = pb.ACTIVITY_STATE_BACKGROUND, pb.ACTIVITY_STATE_FOREGROUND


class DeviceStatus(NamedTuple):
    """The status that is reported when it changes, and that the hints of a stream are made for."""

    state: pb.ActivityState.ValueType
    network: pb.Network.ValueType
    battery_low: bool


class ActivityReports:
    """The device's activity and its reports. Times are seconds of one clock that never goes back."""

    def __init__(self, now: float) -> None:
        self.status = DeviceStatus(_FOREGROUND, pb.NETWORK_UNSPECIFIED, battery_low=False)
        self._touched_at = now
        self._reported: DeviceStatus | None = None
        self._reported_idle_s = 0.0
        self._urgent = False
        self._urgent_backoff = Backoff(_URGENT_DELAY_S)
        self._retry_at = 0.0
        self._allowance = _BURST
        self._refilled_at = now

    def enter_foreground(self, now: float) -> None:
        """Note that the app came to the screen, which is reported at once even if nothing else has changed."""
        self._change(self.status._replace(state=_FOREGROUND))
        self._touched_at = now
        self._urgent = True
        self._urgent_backoff.reset()

    def enter_background(self) -> None:
        """Note that the app left the screen."""
        self._urgent = False
        self._change(self.status._replace(state=_BACKGROUND))

    def set_network(self, network: pb.Network.ValueType) -> None:
        """Note the network that the device is connected by."""
        self._change(self.status._replace(network=network))

    def set_battery(self, *, low: bool) -> None:
        """Note if the battery is low."""
        self._change(self.status._replace(battery_low=low))

    def touch(self, now: float) -> None:
        """Note that the user did something."""
        self._touched_at = now
        if self._reported_idle_s >= _IDLE_S:
            self._retry_at = 0.0

    def message(self, now: float) -> pb.Activity:
        """Return the activity for a request."""
        activity = pb.Activity(
            state=self.status.state, network=self.status.network, battery_low=self.status.battery_low
        )
        activity.idle_duration.FromMilliseconds(round(self._idle_s(now) * 1000))
        return activity

    def is_unreported(self, now: float, *, streaming: bool) -> bool:
        """Tell if the server does not know the activity yet. While `streaming` no poll reports the idle time."""
        if self._urgent or self.status != self._reported:
            return True
        idle_s = self._idle_s(now)
        if self._reported_idle_s >= _IDLE_S and idle_s < _IDLE_S:
            return True
        return streaming and idle_s >= max(_IDLE_S, 2 * self._reported_idle_s)

    def report_at(self, now: float, *, streaming: bool) -> float:
        """Return the moment to report without waiting for the next poll; infinity if there is nothing to report."""
        if self._reported is None and not self._urgent:
            return math.inf  # the first poll reports it
        if not self.is_unreported(now, streaming=streaming):
            return math.inf
        self._refill(now)
        return max(self._retry_at, now + max(0.0, 1.0 - self._allowance) * _REFILL_S)

    def record_sent(self, now: float) -> None:
        """Count a report that is on its way."""
        self._refill(now)
        self._allowance = max(0.0, self._allowance - 1.0)

    def record_accepted(self, sent: pb.Activity) -> None:
        """Note that the server has this activity; changes made meanwhile are reported next."""
        self._reported = DeviceStatus(sent.state, sent.network, sent.battery_low)
        self._reported_idle_s = sent.idle_duration.ToTimedelta().total_seconds()
        self._urgent = False

    def record_failure(self, now: float) -> None:
        """Schedule the next attempt: soon, a few times, for an app that came to the screen; else with the next poll."""
        self._retry_at = now + self._urgent_backoff.next_delay()
        if not self._urgent or self._urgent_backoff.failures >= _URGENT_ATTEMPTS:
            self._urgent = False
            self._retry_at = math.inf

    def _change(self, status: DeviceStatus) -> None:
        self.status = status
        self._retry_at = 0.0

    def _idle_s(self, now: float) -> float:
        return min(_MAX_IDLE_S, max(0.0, now - self._touched_at))

    def _refill(self, now: float) -> None:
        self._allowance = min(_BURST, self._allowance + (now - self._refilled_at) / _REFILL_S)
        self._refilled_at = now
