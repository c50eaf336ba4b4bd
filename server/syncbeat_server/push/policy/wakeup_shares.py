"""Divides a device's wake-ups among the scopes and users that bring them about. Pure.

The app's own backend may spend them all. Of what its users bring about, each scope and each user has a share, so that
nobody takes away others': half of what comes at once and half of what comes later. What others leave is anybody's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from syncbeat_server.push.model import ClaimedDelivery
from syncbeat_server.push.policy.quiet_hours import WakeBudget

_SHARE = 0.5
_BY_USER = "user:"


@dataclass(frozen=True, slots=True)
class Purse:
    """The wake-ups a device has left, and those spent of late by each that has a share."""

    tokens: float
    spent: Mapping[str, float]


def sharers(delivery: ClaimedDelivery) -> tuple[str, ...]:
    """Out of whose shares a wake-up is paid: its scope's and its user's; none of one that the backend brought about."""
    return (f"scope:{delivery.scope}", delivery.caller) if delivery.caller.startswith(_BY_USER) else ()


def refilled(purse: Purse, budget: WakeBudget, passed_s: float) -> Purse:
    """The same purse `passed_s` later."""
    grown = passed_s / budget.refill_s
    left = {name: most for name, spent in purse.spent.items() if (most := spent - grown * _SHARE) > 0.0}
    return Purse(min(budget.most, purse.tokens + grown), left)


def spend(purse: Purse, budget: WakeBudget, names: tuple[str, ...]) -> tuple[Purse, float]:
    """Pay one wake-up out of the shares of these, if that is possible; and seconds until it may be, 0 if it was."""
    share = math.ceil(budget.most * _SHARE)
    wait_s = (1.0 - purse.tokens) * budget.refill_s
    over = max((purse.spent.get(name, 0.0) + 1.0 - share for name in names), default=0.0)
    if over > 0.0:
        # Beyond its share it gets what is left over once the others could have theirs.
        left_over_s = (budget.most - share + 1.0 - purse.tokens) * budget.refill_s
        wait_s = max(wait_s, min(left_over_s, over * budget.refill_s / _SHARE))
    if wait_s > 0.0:
        return purse, max(1.0, wait_s)
    spent = {**purse.spent, **{name: purse.spent.get(name, 0.0) + 1.0 for name in names}}
    return Purse(purse.tokens - 1.0, spent), 0.0
