"""An app's price as all its processes move it together: what each measured is added, and it is adjusted in time. Pure.

Each process adds its sums under the lock of the app's row; whoever finds that enough time has gone by adjusts the price
in the same transaction. So it is adjusted once a minute, by the measurements of all, however many processes there are.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from syncbeat_server.sync.policy.belief import Prior
from syncbeat_server.sync.policy.interval import Price
from syncbeat_server.sync.policy.price_controller import Measured, Target, TargetKind, adjusted, first_price

_LOAD_FADES_IN_S = 86_400.0
_STALE_FADES_IN_S = 1_800.0
_LEAST_TARGETS = 10.0  # so many times the target, a mean is measured over
_LEAST_CHANGES = 100.0  # so many changes a mean is over, however long that takes: of few it is chance
_ASSUMED = 10.0  # changes that are taken to have been as stale as the first price is to make them
_PUNCTUAL = 0.9  # of the time to measure: who comes a little early must not wait for another round
_LONGEST_S = 3600.0  # between two adjustments: beyond it nobody was there to measure


class Sums(NamedTuple):
    """What was measured of an app: see `target.Measured`.

    `capped` and `floored` are those of `polls` whose interval was at a bound; `requests` are all.
    """

    changes: float = 0.0
    stale_s: float = 0.0
    late: float = 0.0
    polls: float = 0.0
    capped: float = 0.0
    floored: float = 0.0
    requests: float = 0.0

    def plus(self, others: Sums) -> Sums:
        """Both together."""
        return Sums(*[mine + theirs for mine, theirs in zip(self, others, strict=True)])

    def less(self, others: Sums) -> Sums:
        """What came since `others`."""
        return Sums(*[mine - theirs for mine, theirs in zip(self, others, strict=True)])


class Tuned(NamedTuple):
    """The price for a target as of `tuned_at` (unix seconds), and what was measured since.

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


def begun(target: Target, prior: Prior, now: float) -> Tuned:
    """Where the price of a target begins."""
    price = first_price(target, prior)
    stale_s = _ASSUMED * target.value * math.sqrt(price.staleness) if target.kind is TargetKind.MEAN else 0.0
    return Tuned(target, price, now, unit_changes=_ASSUMED, unit_stale_s=stale_s)


def tuned_after(tuned: Tuned, sums: Sums, target: Target, prior: Prior, now: float) -> Tuned:
    """The price after one process's sums. With another target it begins anew, but the day's load is still that."""
    if tuned.target != target:
        fresh = begun(target, prior, now)
        return fresh._replace(unit_requests=tuned.unit_requests, unit_s=tuned.unit_s)
    since = tuned.since.plus(sums)
    elapsed = now - tuned.tuned_at
    if elapsed < _PUNCTUAL * target.settles_s:
        return tuned._replace(since=since)
    elapsed = min(elapsed, _LONGEST_S)
    root = math.sqrt(tuned.price.staleness)
    window_s = (
        max(_STALE_FADES_IN_S, _LEAST_TARGETS * target.value) if target.kind is TargetKind.MEAN else _STALE_FADES_IN_S
    )
    kept, kept_load = math.exp(-elapsed / window_s), math.exp(-elapsed / _LOAD_FADES_IN_S)
    if kept * tuned.unit_changes < _LEAST_CHANGES:
        kept = min(1.0, _LEAST_CHANGES / max(tuned.unit_changes, 1.0))
    seen = since.changes > 0.0
    after = tuned._replace(
        tuned_at=now,
        since=Sums(),
        unit_changes=kept * tuned.unit_changes + since.changes,
        unit_stale_s=kept * tuned.unit_stale_s + since.stale_s * root,
        unit_requests=kept_load * tuned.unit_requests + since.requests / root,
        unit_s=kept_load * tuned.unit_s + elapsed,
        mean_s=since.stale_s / since.changes if seen else tuned.mean_s,
        late_share=since.late / since.changes if seen else tuned.late_share,
    )
    return after._replace(price=adjusted(tuned.price, target, _measured(after, since), prior))


def _measured(tuned: Tuned, since: Sums) -> Measured:
    return Measured(
        unit_stale_s=tuned.unit_stale_s / tuned.unit_changes if tuned.unit_changes > 0.0 else 0.0,
        unit_load=tuned.unit_requests / tuned.unit_s,
        changes=since.changes,
        late=since.late,
        capped=since.capped / since.polls if since.polls > 0.0 else 0.0,
        floored=since.floored / since.polls if since.polls > 0.0 else 0.0,
    )
