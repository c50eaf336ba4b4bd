"""Finds the price of staleness that achieves an app's target, by feedback. Pure.

Only one number of the interval's formula is free: the cost of a stale second, in polls. Nobody knows it, but everybody
knows how stale their app may be, how late a change may come, or how many requests they can pay. So the target is given
in those terms, and the price follows from measurements: staleness goes with 1 / sqrt(price), requests with sqrt(price),
so that staleness * sqrt(price) and requests / sqrt(price) are the app's own, whatever the price was.
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import NamedTuple

from syncbeat_server.defaults import TARGET_STALENESS_S
from syncbeat_server.sync.policy.interval import Price
from syncbeat_server.sync.policy.scope_prior import DEFAULT_PRIOR, Prior

LATE_SHARE = 0.05
"""The share of changes that may come later than a p95 target says."""

_GAIN = 0.2
_MAX_STEP = 0.5  # in ln(price): one odd minute must not undo an hour
_ASSUMED_CHANGES = 20.0  # on target, added to the measured ones: few measurements say little
_SPAN = 30.0  # the largest ratio of the price and that from the prior, either way
_BUDGET_SPAN = 10_000.0  # the same for a budget, which does not say how stale an app may be
_PINNED = 0.9  # of polls at a bound, which the price does not move
_KNOWN_RATES = 0.65  # ratio of the prices at which known rates and the filter's estimates are equally stale
_QUIET = 2.0  # times the cold rate: below it a scope is given up rather than polled within a p95 limit
_DAY_S = 86_400.0


class TargetKind(StrEnum):
    """Names the terms in which a target is given."""

    MEAN = "mean"
    P95 = "p95"
    BUDGET = "budget"


class Target(NamedTuple):
    """Holds an app's target.

    It is the mean staleness in seconds, the staleness in seconds that 95 of 100 changes keep to, or requests a day.
    """

    kind: TargetKind
    value: float

    @property
    def late_s(self) -> float:
        """Return the staleness in seconds from which a change is late: for a mean target four times its value."""
        match self.kind:
            case TargetKind.P95:
                return self.value
            case TargetKind.MEAN:
                return 4.0 * self.value
            case TargetKind.BUDGET:
                return 4.0 * TARGET_STALENESS_S

    @property
    def settles_s(self) -> float:
        """Return the seconds to measure between two adjustments: a price shows only in intervals given after it."""
        return 60.0 if self.kind is TargetKind.BUDGET else max(60.0, 2.0 * self.value)

    def __str__(self) -> str:
        match self.kind:
            case TargetKind.MEAN:
                return f"a mean staleness of {self.value:g} s"
            case TargetKind.P95:
                return f"95 of 100 changes seen within {self.value:g} s"
            case TargetKind.BUDGET:
                return f"{self.value:,.0f} requests a day"


DEFAULT_TARGET = Target(TargetKind.MEAN, TARGET_STALENESS_S)


class Measurements(NamedTuple):
    """Holds the measurements of an app's devices.

    `unit_stale_s` is the recent mean staleness at a price of 1 (staleness * sqrt(price)), `unit_load` the requests a
    second of a day at a price of 1 (requests / sqrt(price)); 0 while nothing is known. Since the last adjustment,
    `changes` is the number of changes shown and `late` of those that were late, weighted by attention; `capped` and
    `floored` are the shares of polls whose interval was at a bound.
    """

    unit_stale_s: float = 0.0
    unit_load: float = 0.0
    changes: float = 0.0
    late: float = 0.0
    capped: float = 0.0
    floored: float = 0.0


def first_price(target: Target, prior: Prior = DEFAULT_PRIOR) -> Price:
    """Return the price to begin with, from the prior alone.

    Scopes polled by the square-root law of their rates r have a mean staleness of E[sqrt r] / E[r] / sqrt(2 V). With a
    p95 target the price of a stale second is that of a mean as long as the limit, and a late change costs so much that
    scopes twice as busy as a cold one are polled within it.
    """
    hot = prior.start_per_s / (prior.start_per_s + prior.end_per_s)
    rate = hot * prior.hot_per_s + (1.0 - hot) * prior.cold_per_s
    root = hot * _mean_root(prior.hot_per_s, prior.hot_shape)
    root += (1.0 - hot) * _mean_root(prior.cold_per_s, prior.cold_shape)
    mean_s = TARGET_STALENESS_S if target.kind is TargetKind.BUDGET else target.value
    staleness = (root / rate) ** 2 / (2.0 * mean_s**2) / _KNOWN_RATES
    if target.kind is not TargetKind.P95:
        return Price(staleness)
    return Price(staleness, 1.0 / (_QUIET * prior.cold_per_s * target.value))


def adjust_price(price: Price, target: Target, measured: Measurements, prior: Prior = DEFAULT_PRIOR) -> Price:
    """Return the price for the time to come. Without measurements it stays.

    For a mean and for a budget it is solved for, from the app's own quantities. Intervals at their bounds bend that
    law, but a price that meets the target stays, and others approach it. A budget is of a day, so that its price must
    not follow the hours. The share of late changes has no such law: a p95 target has an integral controller.
    """
    first = first_price(target, prior)
    match target.kind:
        case TargetKind.MEAN:
            return _solved(price, first, measured.unit_stale_s / target.value, measured)
        case TargetKind.BUDGET:
            load = measured.unit_load
            root = target.value / _DAY_S / load if load > 0.0 else 0.0
            return _solved(price, first, root, measured, _BUDGET_SPAN)
        case TargetKind.P95:
            return _punctual(price, first, measured)


def _solved(price: Price, first: Price, root: float, measured: Measurements, span: float = _SPAN) -> Price:
    """Return the price after a bounded step to the price whose root this is."""
    if root <= 0.0:
        return price
    step = _step(2.0 * math.log(root) - math.log(price.staleness), measured)
    return Price(_moved(price.staleness, first.staleness, step, span))


def _punctual(price: Price, first: Price, measured: Measurements) -> Price:
    """Return the price for a p95 target: that of lateness moves as long as it matters, below that the one of staleness.

    The step is linear in the number of late changes: few changes are late, and the logarithm of few is biased.
    """
    meant = LATE_SHARE * measured.changes
    step = _step(_GAIN * (measured.late - meant) / (LATE_SHARE * (measured.changes + _ASSUMED_CHANGES)), measured)
    least = first.lateness / _SPAN
    cheap = price.staleness < first.staleness
    if cheap or (step < 0.0 and price.lateness <= least):
        staleness = min(first.staleness, _moved(price.staleness, first.staleness, step))
        return Price(staleness, max(least, price.lateness))
    return Price(price.staleness, _moved(max(least, price.lateness), first.lateness, step))


def _step(wanted: float, measured: Measurements) -> float:
    """Return a step in ln(price): bounded, and 0 where the intervals cannot follow."""
    if (wanted < 0.0 and measured.capped > _PINNED) or (wanted > 0.0 and measured.floored > _PINNED):
        return 0.0
    return min(_MAX_STEP, max(-_MAX_STEP, wanted))


def _moved(price: float, first: float, step: float, span: float = _SPAN) -> float:
    # A new prior has another first price: that stops the price from going further, but does not move it by itself.
    least, most = min(price, first / span), max(price, first * span)
    return min(most, max(least, price * math.exp(step)))


def _mean_root(mean: float, shape: float) -> float:
    """Return E[sqrt r] of a gamma distribution."""
    return math.sqrt(mean / shape) * math.exp(math.lgamma(shape + 0.5) - math.lgamma(shape))
