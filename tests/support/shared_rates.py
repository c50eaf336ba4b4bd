"""Says in Python what the script of shared rates decides (`storage/redis/shared_rates.py`), to hold it against."""

from __future__ import annotations

from typing import NamedTuple

from syncbeat_server.ratelimit.model import Rate
from syncbeat_server.ratelimit.policy.gcra import most_used


class Settled(NamedTuple):
    """Units that were granted, and those in use from then on."""

    granted: float
    used: float


def settle(rate: Rate, used: float, charged: float, least: float, wanted: float, held: float = 0.0) -> Settled:
    """Charge a shared bucket for what was used already, or give back, and grant up to `wanted` whole units.

    Fewer than `least` are of no use to whoever asks, and are not granted; `held` units are left for others.
    """
    used = max(0.0, min(most_used(rate), used + charged))
    free = float(int(max(0.0, rate.burst - used - held) + 1e-6))
    granted = min(wanted, free) if free >= least else 0.0
    return Settled(granted, used + granted)
