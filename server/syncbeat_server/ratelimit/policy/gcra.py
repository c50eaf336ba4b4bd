"""Decides rates: the generic cell rate algorithm, whose whole state is the time at which a bucket is empty again.

That time (`drained_at`, the theoretical arrival time less nothing) is on one clock, that of whoever keeps the bucket:
Redis's own for buckets that processes share, the monotonic one for those of a process. No state crosses clocks: what
processes tell each other are units. A clock that jumps back cannot lock a caller out, since a bucket never counts as
fuller than `most_used`; one that jumps ahead gives one burst at most.
"""

from __future__ import annotations

from syncbeat_server.ratelimit.model import Rate
from syncbeat_server.ratelimit.policy.decision import Bound, Decision, decide

_DEBT_SHARE = 0.125
"""Of a burst: how far below empty a bucket may go by what was used before it was asked for."""
CLOSED = Bound(0.0, retry_s=3600.0)
"""A rate of nothing: it does not end by waiting, so callers are kept away."""


def bound_of(rate: Rate) -> Bound:
    """Return the bound of a rate."""
    return Bound(float(rate.burst), rate.per_second) if rate.per_second > 0.0 and rate.burst > 0 else CLOSED


def most_used(rate: Rate) -> float:
    """Return the most units that may count as in use."""
    return rate.burst * (1.0 + _DEBT_SHARE) + 1.0


def used_at(rate: Rate, drained_at: float, now: float) -> float:
    """Return the units in use now of a bucket that is empty at `drained_at`."""
    return min(most_used(rate), max(0.0, (drained_at - now) * rate.per_second))


def take(rate: Rate, drained_at: float, now: float, cost: float = 1.0) -> tuple[Decision, float]:
    """Decide a call, and return when the bucket will be empty after it.

    A call that costs more than the burst takes all of it, or a large request could never be made.
    """
    bound = bound_of(rate)
    used = used_at(rate, drained_at, now)
    cost = min(cost, float(rate.burst))
    decision = decide(bound, used, cost)
    if bound is CLOSED:
        return decision, drained_at
    return decision, now + (used + cost if decision.allowed else used) / rate.per_second
