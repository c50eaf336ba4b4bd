"""Gives each process its part of a rate while Redis is away: all together admit twice the rate at most."""

from __future__ import annotations

from syncbeat_server.ratelimit.model import Rate


def share_of(processes: int) -> float:
    """Return the part of a rate that one of the processes goes by alone: that of twice the rate, or all of it."""
    return min(1.0, 2.0 / processes)


def local_rate(rate: Rate, share: float) -> Rate:
    """Return the rate of one process while it cannot ask: its share, and room for one call at least."""
    return Rate(rate.per_second * share, max(1, int(rate.burst * share)))
