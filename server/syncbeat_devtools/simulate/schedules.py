"""The policies as the event loop asks them: each keeps what the server would, and asks `sync.policy` for its waits."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from typing import NamedTuple, Protocol

from syncbeat_devtools.simulate.fleet import DAY, Device, FleetSpec
from syncbeat_devtools.simulate.known import UNBOUNDED, CeilingSchedule, OracleSchedule
from syncbeat_devtools.simulate.settings import POLL_COST, PolicyRow, Settings
from syncbeat_server.sync.model import Windows
from syncbeat_server.sync.policy import baselines, interval, scope_signal
from syncbeat_server.sync.policy.belief import Outlook
from syncbeat_server.sync.policy.interval import Bounds


class Expectation(NamedTuple):
    """What a policy expects of the wait it asked for."""

    rate: float
    changes: float
    stale_s: float


class Schedule(Protocol):
    """When does a device ask again? Asked in the order of time."""

    def changed(self, at: float) -> None:
        """The server heard of a change."""
        ...

    def interval(self, now: float, *, news: bool) -> float:
        """The wait after a poll at `now`, which found news or not."""
        ...

    def expectation(self, wait_s: float) -> Expectation | None:
        """What the policy expects of the wait it just named; None of one that expects nothing."""
        ...


class _Silent:
    """Expects nothing, and learns nothing."""

    def changed(self, at: float) -> None:
        pass

    def expectation(self, wait_s: float) -> Expectation | None:
        return None


class FixedSchedule(_Silent):
    """The same wait always."""

    def __init__(self, settings: Settings) -> None:
        self._scale = settings.multiplier

    def interval(self, now: float, *, news: bool) -> float:
        """The wait after a poll."""
        return baselines.fixed_interval(self._scale)


class TierSchedule(_Silent):
    """The tier table, looked up anew as seldom as its authors do."""

    def __init__(self, settings: Settings, born: float) -> None:
        self._scale = settings.multiplier
        self._windows = Windows(0.0, 0.0, born, born)
        self._reviewed_at = -math.inf
        self._wait_s = 0.0

    def changed(self, at: float) -> None:
        """The server heard of a change."""
        self._windows = baselines.windows_after_change(self._windows, at)

    def interval(self, now: float, *, news: bool) -> float:
        """The wait after a poll."""
        if now - self._reviewed_at >= baselines.REVIEW_S:
            self._wait_s, self._reviewed_at = baselines.tier_interval(self._windows, now, self._scale), now
        return self._wait_s


class BackoffSchedule(_Silent):
    """Multiplicative back-off. All it converges to is a hit ratio; its mean staleness is set by its longest wait."""

    def __init__(self, settings: Settings) -> None:
        self._bounds = Bounds(
            min(settings.bounds.floor_s, settings.multiplier * baselines.FIXED_S),
            settings.multiplier * baselines.FIXED_S,
        )
        self._wait_s = self._bounds.cap_s

    def interval(self, now: float, *, news: bool) -> float:
        """The wait after a poll."""
        self._wait_s = baselines.multiplicative_backoff(self._wait_s, self._bounds, news=news)
        return self._wait_s


class EwmaSchedule(_Silent):
    """The square root of a rate by two moving averages."""

    def __init__(self, settings: Settings, born: float, mean_rate: float) -> None:
        self._price = settings.price.staleness
        self._bounds, self._mean_rate = settings.bounds, mean_rate
        self._windows = Windows(0.0, 0.0, born, born)

    def changed(self, at: float) -> None:
        """The server heard of a change."""
        self._windows = baselines.windows_after_change(self._windows, at)

    def interval(self, now: float, *, news: bool) -> float:
        """The wait after a poll."""
        rate = baselines.ewma_rate(self._windows, self._mean_rate, now)
        return baselines.square_root_interval(rate, self._price, POLL_COST, self._bounds)


class AdaptiveSchedule:
    """What the server does: a belief that each change moves, and the interval that its outlook is worth.

    `presence` are instants at which the server hears of a writer that came (True) or left.
    """

    def __init__(self, settings: Settings, born: float, presence: Iterable[tuple[float, bool]] = ()) -> None:
        self._price = settings.price
        self._bounds, self._prior = settings.bounds, settings.prior
        self._signal = scope_signal.initial_signal(born)._replace(presence_at=born)
        self._outlook = Outlook(0.0, 0.0, 1.0)
        self._presence = sorted(presence, reverse=True)

    def changed(self, at: float) -> None:
        """The server heard of a change."""
        self._hear_until(at)
        self._signal = scope_signal.signal_after_change(self._signal, self._prior, at)

    def interval(self, now: float, *, news: bool) -> float:
        """The wait after a poll."""
        self._hear_until(now)
        self._outlook = scope_signal.signal_outlook(self._signal, self._prior, now)
        return interval.poll_interval(self._outlook, self._price, POLL_COST, self._bounds, self._bounds.cap_s)

    def expectation(self, wait_s: float) -> Expectation | None:
        """What the outlook says of the wait."""
        return _expected(self._outlook, wait_s)

    def _hear_until(self, now: float) -> None:
        while self._presence and self._presence[-1][0] <= now:
            at, present = self._presence.pop()
            self._signal = self._signal._replace(presence_at=at, present=present)


def _expected(view: Outlook, wait_s: float) -> Expectation:
    stale_s, changes = interval.expected_staleness(view, wait_s)
    return Expectation(view.rate, changes, stale_s)


def presence_of(device: Device, spec: FleetSpec, settings: Settings, chance: random.Random) -> list[tuple[float, bool]]:
    """What the server hears of writers: with a lag, not of all sessions, and of as many that come to nothing."""
    lag, unseen = settings.presence_lag_s, settings.presence_unseen
    heard: list[tuple[float, bool]] = []
    for start, end in device.sessions:
        if chance.random() >= unseen:
            heard += [(start + lag, True), (max(end, start + lag) + lag, False)]
        if chance.random() < unseen:
            at = chance.uniform(0.0, DAY)
            heard += [(at, True), (at + chance.expovariate(1 / spec.session_s), False)]
    return heard


def schedule_for(
    row: PolicyRow, settings: Settings, spec: FleetSpec, device: Device, mean_rate: float, chance: random.Random
) -> Schedule:
    """The schedule of a device by a policy that polls. `mean_rate` is that of the fleet's feeds, a second."""
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
            return AdaptiveSchedule(settings, device.born, presence_of(device, spec, settings, chance))
        case PolicyRow.CEILING | PolicyRow.CAPPED_CEILING:
            bounds = settings.bounds if row is PolicyRow.CAPPED_CEILING else UNBOUNDED
            return CeilingSchedule(settings, device, spec, bounds)
        case PolicyRow.ORACLE:
            return OracleSchedule(settings, device)
        case _:
            return AdaptiveSchedule(settings, device.born)
