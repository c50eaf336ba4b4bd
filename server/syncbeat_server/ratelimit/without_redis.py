"""Decides calls while Redis is away, by this process's share of each rate (ADR 135)."""

from __future__ import annotations

from collections.abc import Sequence

from syncbeat_server.ratelimit.lease import Lease, Refused, strictest
from syncbeat_server.ratelimit.policy.gcra import take
from syncbeat_server.ratelimit.policy.local_share import local_rate


def take_shares(found: Sequence[tuple[Lease, float]], share: float, era: int, now: float) -> Refused | None:
    """Take units of several buckets by this process's share of their rates, all or none.

    `era` is the number of the present time without Redis. When one begins, at most half of a share is free: the other
    half may have been used just before.
    """
    taken, refusals = [], []
    for lease, cost in found:
        local = local_rate(lease.rate, share)
        if lease.era != era:
            lease.era = era
            free = max(1.0, local.burst / 2)
            if local.per_second > 0.0:
                lease.drained_at = max(lease.drained_at, now + (local.burst - free) / local.per_second)
        decision, drained_at = take(local, lease.drained_at, now, cost)
        taken.append((lease, cost, drained_at))
        if not decision.allowed:
            refusals.append(Refused(lease.rule, decision))
    if refusals:
        return strictest(refusals)
    for lease, cost, drained_at in taken:
        lease.drained_at = drained_at
        lease.owed += cost
    return None
