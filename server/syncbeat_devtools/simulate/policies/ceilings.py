"""Schedules with knowledge that no server can have: they show the limits of any policy."""

from __future__ import annotations

import math

from syncbeat_devtools.simulate.fleet.devices import DAY, Device, FleetSpec
from syncbeat_devtools.simulate.policies.settings import POLL_COST, Settings
from syncbeat_server.sync.policy import belief, comparison_policies, interval, scope_prior
from syncbeat_server.sync.policy.interval import Bounds
from syncbeat_server.sync.policy.scope_prior import Prior

UNBOUNDED = Bounds(0.5, DAY)
_EXACT = 1e12
"""The shape of a prior that no observation moves, for a rate that is known."""
_HALVINGS = 40


def exact_prior(device: Device, spec: FleetSpec, now: float) -> Prior:
    """Return a prior with this feed's true rates at this time of day, so certain that no observation moves it."""
    return Prior(spec.start_rate(now), 1 / spec.session_s, device.hot_per_s, _EXACT, device.cold_per_s, _EXACT)


class CeilingSchedule:
    """The causal ceiling: the filter with each feed's true rates, and the rate of sessions at this time of day.

    The prior is so certain that no observation moves it. Value iteration on the same knowledge gains no more than this
    rule does, to 0.1 % (0.7 % on bursty fleets).
    """

    def __init__(self, settings: Settings, device: Device, spec: FleetSpec, bounds: Bounds) -> None:
        self._price, self._bounds = settings.price, bounds
        self._spec, self._device = spec, device
        self._belief = scope_prior.initial_belief(self._prior(device.born), device.born)

    def _prior(self, now: float) -> Prior:
        return exact_prior(self._device, self._spec, now)

    def on_change(self, at: float) -> None:
        """Update the belief by a change."""
        self._belief = belief.after_change(self._belief, self._prior(at), at)

    def expectation(self, wait_s: float) -> None:
        """Return None: the estimates of this schedule are not evaluated."""

    def interval(self, now: float, *, news: bool) -> float:
        """Return the interval after a poll."""
        prior = self._prior(now)
        self._belief = belief.after_silence(self._belief, prior, now)
        view = belief.outlook(self._belief, prior, now)
        return interval.poll_interval(view, self._price, POLL_COST, self._bounds, DAY)


class OracleSchedule:
    """The square-root law with the true rate of the coming interval, including future sessions, which no policy knows.

    The rate that counts is the mean over the interval, each second weighted by the time its changes will have waited.
    """

    def __init__(self, settings: Settings, device: Device) -> None:
        self._price = settings.price.staleness
        self._segments = device.segments
        self._first = 0

    def on_change(self, at: float) -> None:
        """Ignore a change, which is known in advance."""

    def expectation(self, wait_s: float) -> None:
        """Return None: the estimates of this schedule are not evaluated."""

    def interval(self, now: float, *, news: bool) -> float:
        """Return the interval after a poll."""
        while self._segments[self._first].end <= now and self._first < len(self._segments) - 1:
            self._first += 1
        low, high = UNBOUNDED
        for _ in range(_HALVINGS):
            wait = math.sqrt(low * high)
            if (
                comparison_policies.square_root_interval(self._rate(now, wait), self._price, POLL_COST, UNBOUNDED)
                > wait
            ):
                low = wait
            else:
                high = wait
        return comparison_policies.square_root_interval(self._rate(now, high), self._price, POLL_COST, UNBOUNDED)

    def _rate(self, now: float, wait: float) -> float:
        end, weighed = now + wait, 0.0
        for segment in self._segments[self._first :]:
            low = max(now, segment.start)
            # The last rate of the day continues.
            high = end if segment.end >= DAY else min(end, segment.end)
            if high > low:
                weighed += segment.per_s * ((end - low) ** 2 - (end - high) ** 2)
            if segment.end >= end:
                break
        return weighed / (wait * wait)
