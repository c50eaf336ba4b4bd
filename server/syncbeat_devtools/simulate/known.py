"""Schedules that are told what no server can know: they say how far a policy could get."""

from __future__ import annotations

import math

from syncbeat_devtools.simulate.fleet import DAY, Device, FleetSpec
from syncbeat_devtools.simulate.settings import POLL_COST, Settings
from syncbeat_server.sync.policy import baselines, belief, interval
from syncbeat_server.sync.policy.belief import Prior
from syncbeat_server.sync.policy.interval import Bounds

UNBOUNDED = Bounds(0.5, DAY)
_KNOWN = 1e12
"""The shape of a prior that nothing moves: of a rate that is known."""
_HALVINGS = 40


def known_prior(device: Device, spec: FleetSpec, now: float) -> Prior:
    """A prior so sure of this feed's true rates that nothing moves it, at this time of day."""
    return Prior(spec.start_rate(now), 1 / spec.session_s, device.hot_per_s, _KNOWN, device.cold_per_s, _KNOWN)


class CeilingSchedule:
    """The filter told each feed's true rates, and how often sessions begin at this time of day: the causal ceiling.

    The prior is so sure of its rates that nothing moves them. Value iteration on the same knowledge gains no more than
    this rule does, to 0.1 % (0.7 % on bursty fleets).
    """

    def __init__(self, settings: Settings, device: Device, spec: FleetSpec, bounds: Bounds) -> None:
        self._price, self._bounds = settings.price, bounds
        self._spec, self._device = spec, device
        self._belief = belief.initial_belief(self._prior(device.born), device.born)

    def _prior(self, now: float) -> Prior:
        return known_prior(self._device, self._spec, now)

    def changed(self, at: float) -> None:
        """The server heard of a change."""
        self._belief = belief.after_change(self._belief, self._prior(at), at)

    def expectation(self, wait_s: float) -> None:
        """Nothing: it is not a policy whose judgement is of interest."""

    def interval(self, now: float, *, news: bool) -> float:
        """The wait after a poll."""
        prior = self._prior(now)
        self._belief = belief.after_silence(self._belief, prior, now)
        view = belief.outlook(self._belief, prior, now)
        return interval.poll_interval(view, self._price, POLL_COST, self._bounds, DAY)


class OracleSchedule:
    """The square-root law for the true rate of the wait itself, sessions to come included: no policy knows that.

    The rate that counts is the mean over the wait, each second weighed by how long its changes will have waited.
    """

    def __init__(self, settings: Settings, device: Device) -> None:
        self._price = settings.price.staleness
        self._segments = device.segments
        self._first = 0

    def changed(self, at: float) -> None:
        """It is told beforehand."""

    def expectation(self, wait_s: float) -> None:
        """Nothing: it is not a policy whose judgement is of interest."""

    def interval(self, now: float, *, news: bool) -> float:
        """The wait after a poll."""
        while self._segments[self._first].end <= now and self._first < len(self._segments) - 1:
            self._first += 1
        low, high = UNBOUNDED
        for _ in range(_HALVINGS):
            wait = math.sqrt(low * high)
            if baselines.square_root_interval(self._rate(now, wait), self._price, POLL_COST, UNBOUNDED) > wait:
                low = wait
            else:
                high = wait
        return baselines.square_root_interval(self._rate(now, high), self._price, POLL_COST, UNBOUNDED)

    def _rate(self, now: float, wait: float) -> float:
        end, weighed = now + wait, 0.0
        for segment in self._segments[self._first :]:
            low = max(now, segment.start)
            # The last rate of the day goes on.
            high = end if segment.end >= DAY else min(end, segment.end)
            if high > low:
                weighed += segment.per_s * ((end - low) ** 2 - (end - high) ** 2)
            if segment.end >= end:
                break
        return weighed / (wait * wait)
