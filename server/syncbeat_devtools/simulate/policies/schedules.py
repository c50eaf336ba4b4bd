"""Schedules of the policies: each keeps the state that the server would, and asks `sync.policy` for its intervals."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from typing import NamedTuple, Protocol

from syncbeat_devtools.simulate.fleet.devices import DAY, Device, FleetSpec
from syncbeat_devtools.simulate.policies.ceilings import UNBOUNDED, CeilingSchedule, OracleSchedule
from syncbeat_devtools.simulate.policies.settings import POLL_COST, PolicyRow, Settings
from syncbeat_server.sync.model import Windows
from syncbeat_server.sync.policy import comparison_policies, interval, scope_signal
from syncbeat_server.sync.policy.belief import Outlook
from syncbeat_server.sync.policy.interval import Bounds
from syncbeat_server.sync.policy.rhythm import rhythmic_outlook


class Expectation(NamedTuple):
    """A policy's expectation for the interval it has chosen."""

    rate: float
    changes: float
    stale_s: float


class Schedule(Protocol):
    """Chooses the intervals between a device's polls. Called in the order of time."""

    def on_change(self, at: float) -> None:
        """Record a change that the server has learned of."""
        ...

    def interval(self, now: float, *, news: bool) -> float:
        """Return the interval after a poll at `now`, which found changes (`news`) or not."""
        ...

    def expectation(self, wait_s: float) -> Expectation | None:
        """Return the policy's expectation for the interval it has just chosen; None if it has none."""
        ...


class _NoExpectation:
    """A schedule without estimates, which ignores changes."""

    def on_change(self, at: float) -> None:
        pass

    def expectation(self, wait_s: float) -> Expectation | None:
        return None


class FixedSchedule(_NoExpectation):
    """A fixed interval."""

    def __init__(self, settings: Settings) -> None:
        self._scale = settings.multiplier

    def interval(self, now: float, *, news: bool) -> float:
        """Return the interval after a poll."""
        return comparison_policies.fixed_interval(self._scale)


class TierSchedule(_NoExpectation):
    """The tier table, looked up at the interval that its authors propose."""

    def __init__(self, settings: Settings, born: float) -> None:
        self._scale = settings.multiplier
        self._windows = Windows(0.0, 0.0, born, born)
        self._reviewed_at = -math.inf
        self._wait_s = 0.0

    def on_change(self, at: float) -> None:
        """Record a change."""
        self._windows = comparison_policies.windows_after_change(self._windows, at)

    def interval(self, now: float, *, news: bool) -> float:
        """Return the interval after a poll."""
        if now - self._reviewed_at >= comparison_policies.REVIEW_S:
            self._wait_s, self._reviewed_at = comparison_policies.tier_interval(self._windows, now, self._scale), now
        return self._wait_s


class BackoffSchedule(_NoExpectation):
    """Multiplicative back-off, which converges to a hit ratio; its longest interval determines its mean staleness."""

    def __init__(self, settings: Settings) -> None:
        self._bounds = Bounds(
            min(settings.bounds.floor_s, settings.multiplier * comparison_policies.FIXED_S),
            settings.multiplier * comparison_policies.FIXED_S,
        )
        self._wait_s = self._bounds.cap_s

    def interval(self, now: float, *, news: bool) -> float:
        """Return the interval after a poll."""
        self._wait_s = comparison_policies.multiplicative_backoff(self._wait_s, self._bounds, news=news)
        return self._wait_s


class EwmaSchedule(_NoExpectation):
    """The square-root law with a rate estimated by two moving averages."""

    def __init__(self, settings: Settings, born: float, mean_rate: float) -> None:
        self._price = settings.price.staleness
        self._bounds, self._mean_rate = settings.bounds, mean_rate
        self._windows = Windows(0.0, 0.0, born, born)

    def on_change(self, at: float) -> None:
        """Record a change."""
        self._windows = comparison_policies.windows_after_change(self._windows, at)

    def interval(self, now: float, *, news: bool) -> float:
        """Return the interval after a poll."""
        rate = comparison_policies.ewma_rate(self._windows, self._mean_rate, now)
        return comparison_policies.square_root_interval(rate, self._price, POLL_COST, self._bounds)


class AdaptiveSchedule:
    """The server's own policy: a belief updated by each change, and the interval that its outlook is worth.

    `presence` are times at which the server learns that a writer came (True) or left.
    """

    def __init__(self, settings: Settings, born: float, presence: Iterable[tuple[float, bool]] = ()) -> None:
        self._price = settings.price
        self._bounds, self._prior, self._rhythm = settings.bounds, settings.prior, settings.rhythm
        self._signal = scope_signal.initial_signal(born)._replace(presence_at=born)
        self._outlook = Outlook(0.0, 0.0, 1.0)
        self._presence = sorted(presence, reverse=True)

    def on_change(self, at: float) -> None:
        """Update the belief by a change."""
        self._hear_until(at)
        self._signal = scope_signal.signal_after_change(self._signal, self._prior, at)

    def interval(self, now: float, *, news: bool) -> float:
        """Return the interval after a poll."""
        self._hear_until(now)
        self._outlook = rhythmic_outlook(self._signal, self._prior, self._rhythm, now)
        return interval.poll_interval(self._outlook, self._price, POLL_COST, self._bounds, self._bounds.cap_s)

    def expectation(self, wait_s: float) -> Expectation | None:
        """Return the outlook's expectation for the interval."""
        return _expected(self._outlook, wait_s)

    def _hear_until(self, now: float) -> None:
        while self._presence and self._presence[-1][0] <= now:
            at, present = self._presence.pop()
            self._signal = self._signal._replace(presence_at=at, present=present)


def _expected(view: Outlook, wait_s: float) -> Expectation:
    stale_s, changes = interval.expected_staleness(view, wait_s)
    return Expectation(view.rate, changes, stale_s)


def presence_events(
    device: Device, spec: FleetSpec, settings: Settings, chance: random.Random
) -> list[tuple[float, bool]]:
    """Return the server's presence signals: delayed, missing for some sessions, and as often without a session."""
    lag, unseen = settings.presence_lag_s, settings.presence_unseen
    signals: list[tuple[float, bool]] = []
    for start, end in device.sessions:
        if chance.random() >= unseen:
            signals += [(start + lag, True), (max(end, start + lag) + lag, False)]
        if chance.random() < unseen:
            at = chance.uniform(0.0, DAY)
            signals += [(at, True), (at + chance.expovariate(1 / spec.session_s), False)]
    return signals


def make_schedule(
    row: PolicyRow, settings: Settings, spec: FleetSpec, device: Device, mean_rate: float, chance: random.Random
) -> Schedule:
    """Return the schedule of a device by a policy that polls. `mean_rate` is that of the fleet's feeds, per second."""
    match row:
        case PolicyRow.FIXED:
            return FixedSchedule(settings)
        case PolicyRow.TIERS:
            return TierSchedule(settings, device.born)
        case PolicyRow.BACKOFF:
            return BackoffSchedule(settings)
        case PolicyRow.EWMA:
            return EwmaSchedule(settings, device.born, mean_rate)
        case PolicyRow.PRESENCE:
            return AdaptiveSchedule(settings, device.born, presence_events(device, spec, settings, chance))
        case PolicyRow.CEILING | PolicyRow.CAPPED_CEILING:
            bounds = settings.bounds if row is PolicyRow.CAPPED_CEILING else UNBOUNDED
            return CeilingSchedule(settings, device, spec, bounds)
        case PolicyRow.ORACLE:
            return OracleSchedule(settings, device)
        case _:
            return AdaptiveSchedule(settings, device.born)
