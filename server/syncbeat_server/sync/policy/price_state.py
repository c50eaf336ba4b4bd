"""Adjusts an app's price from the measurements of all its processes. Pure.

Each process adds its sums under the lock of the app's row; the one that finds that enough time has passed adjusts the
price in the same transaction. So it is adjusted once a minute, by the measurements of all, however many processes there
are.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from syncbeat_server.sync.policy.interval import Price
from syncbeat_server.sync.policy.price_controller import Measurements, Target, TargetKind, adjust_price, first_price
from syncbeat_server.sync.policy.scope_prior import Prior

_LOAD_FADES_IN_S = 86_400.0
_STALE_FADES_IN_S = 1_800.0
_MIN_TARGETS = 10.0  # times the target, over which a mean is measured at least
_MIN_CHANGES = 100.0  # over which a mean is measured, however long that takes: of few it is chance
_ASSUMED = 10.0  # changes assumed to have been as stale as the first price is to make them
_PUNCTUAL = 0.9  # of the time to measure: a process that is a little early need not wait for its next turn
_LONGEST_S = 3600.0  # between two adjustments: beyond it nobody was there to measure


class Sums(NamedTuple):
    """Sums the measurements of an app: see `price_controller.Measurements`.

    `capped` and `floored` count the `polls` whose interval was at a bound; `requests` counts all.
    """

    changes: float = 0.0
    stale_s: float = 0.0
    late: float = 0.0
    polls: float = 0.0
    capped: float = 0.0
    floored: float = 0.0
    requests: float = 0.0

    def plus(self, others: Sums) -> Sums:
        """Return both together."""
        return Sums(*[mine + theirs for mine, theirs in zip(self, others, strict=True)])

    def minus(self, others: Sums) -> Sums:
        """Return the difference since `others`."""
        return Sums(*[mine - theirs for mine, theirs in zip(self, others, strict=True)])


class PriceState(NamedTuple):
    """Holds the price for a target as of `tuned_at` (unix seconds), and the measurements since.

    `unit_stale_s` is staleness times the root of the price, of `unit_changes`, which fades within half an hour (ten
    times the target, if that is longer), but not to fewer than a hundred. `unit_requests` are requests over the root of
    the price, of `unit_s` seconds, which fades within a day. `mean_s` and `late_share` were measured before the last
    adjustment, for people to look at.
    """

    target: Target
    price: Price
    tuned_at: float
    since: Sums = Sums()
    unit_changes: float = 0.0
    unit_stale_s: float = 0.0
    unit_requests: float = 0.0
    unit_s: float = 0.0
    mean_s: float | None = None
    late_share: float | None = None


def initial_state(target: Target, prior: Prior, now: float) -> PriceState:
    """Return the state with which a target begins."""
    price = first_price(target, prior)
    stale_s = _ASSUMED * target.value * math.sqrt(price.staleness) if target.kind is TargetKind.MEAN else 0.0
    return PriceState(target, price, now, unit_changes=_ASSUMED, unit_stale_s=stale_s)


def next_state(state: PriceState, sums: Sums, target: Target, prior: Prior, now: float) -> PriceState:
    """Return the state after one process's sums. Another target begins anew, except for the load of the day."""
    if state.target != target:
        fresh = initial_state(target, prior, now)
        return fresh._replace(unit_requests=state.unit_requests, unit_s=state.unit_s)
    since = state.since.plus(sums)
    elapsed = now - state.tuned_at
    if elapsed < _PUNCTUAL * target.settles_s:
        return state._replace(since=since)
    elapsed = min(elapsed, _LONGEST_S)
    root = math.sqrt(state.price.staleness)
    window_s = (
        max(_STALE_FADES_IN_S, _MIN_TARGETS * target.value) if target.kind is TargetKind.MEAN else _STALE_FADES_IN_S
    )
    kept, kept_load = math.exp(-elapsed / window_s), math.exp(-elapsed / _LOAD_FADES_IN_S)
    if kept * state.unit_changes < _MIN_CHANGES:
        kept = min(1.0, _MIN_CHANGES / max(state.unit_changes, 1.0))
    is_measured = since.changes > 0.0
    after = state._replace(
        tuned_at=now,
        since=Sums(),
        unit_changes=kept * state.unit_changes + since.changes,
        unit_stale_s=kept * state.unit_stale_s + since.stale_s * root,
        unit_requests=kept_load * state.unit_requests + since.requests / root,
        unit_s=kept_load * state.unit_s + elapsed,
        mean_s=since.stale_s / since.changes if is_measured else state.mean_s,
        late_share=since.late / since.changes if is_measured else state.late_share,
    )
    return after._replace(price=adjust_price(state.price, target, _measured(after, since), prior))


def _measured(state: PriceState, since: Sums) -> Measurements:
    return Measurements(
        unit_stale_s=state.unit_stale_s / state.unit_changes if state.unit_changes > 0.0 else 0.0,
        unit_load=state.unit_requests / state.unit_s,
        changes=since.changes,
        late=since.late,
        capped=since.capped / since.polls if since.polls > 0.0 else 0.0,
        floored=since.floored / since.polls if since.polls > 0.0 else 0.0,
    )
