"""Limits silent wake-ups to what a device's system delivers, and divides them among those who cause them. Pure.

The app's own backend may spend the whole budget. Of what users cause, each scope and each user has a share of one half,
so that none can use up the wake-ups of the others. What the others leave is free to all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from syncbeat_server.push.model import ClaimedDelivery
from syncbeat_server.ratelimit.catalog import WAKES_OF_ANDROID, WAKES_OF_IOS
from syncbeat_server.ratelimit.policy.decision import Bound, decide

_SHARE = 0.5
_BY_USER = "user:"


@dataclass(frozen=True, slots=True)
class WakeBudget:
    """Token bucket of a system: `burst` wake-ups at once, and one more every `refill_s` seconds."""

    burst: float
    refill_s: float


# Android: a collapsible message may come 20 times at once, then every 3 minutes (firebase.google.com, "Throttling and
# quotas"). iOS: background notifications, "two or three per hour" (developer.apple.com, "Pushing background updates to
# your App"). Browsers publish none.
_BOUNDS = {"ANDROID": WAKES_OF_ANDROID.bound, "IOS": WAKES_OF_IOS.bound}
_BUDGETS = {name: WakeBudget(bound.capacity, 1.0 / bound.per_second) for name, bound in _BOUNDS.items()}


@dataclass(frozen=True, slots=True)
class Balance:
    """Wake-ups that a device has left, and those that each holder of a share has spent recently."""

    tokens: float
    spent: Mapping[str, float]


def wake_budget(platform: str) -> WakeBudget | None:
    """Return the budget of a platform, or None if it publishes no limit."""
    return _BUDGETS.get(platform)


def share_holders(delivery: ClaimedDelivery) -> tuple[str, ...]:
    """Return the names of the shares that pay for a wake-up: its scope's and its user's; none for the backend's."""
    return (f"scope:{delivery.scope}", delivery.caller) if delivery.caller.startswith(_BY_USER) else ()


def refill(balance: Balance, budget: WakeBudget, passed_s: float) -> Balance:
    """Return the balance `passed_s` seconds later."""
    grown = passed_s / budget.refill_s
    left = {name: most for name, spent in balance.spent.items() if (most := spent - grown * _SHARE) > 0.0}
    return Balance(min(budget.burst, balance.tokens + grown), left)


def spend(balance: Balance, budget: WakeBudget, holders: tuple[str, ...]) -> tuple[Balance, float]:
    """Pay for one wake-up out of the shares of `holders`.

    Returns the new balance and 0, or, if there is not enough, the old balance and the seconds until there may be.
    """
    share = math.ceil(budget.burst * _SHARE)
    per_s, used = 1.0 / budget.refill_s, budget.burst - balance.tokens
    wait_s = decide(Bound(budget.burst, per_s), used).wait_s
    of_holder = Bound(share, per_s * _SHARE)
    share_wait_s = max((decide(of_holder, balance.spent.get(name, 0.0)).wait_s for name in holders), default=0.0)
    if share_wait_s > 0.0:
        # A share that is used up gets what is left over once the others could have theirs.
        left_over_s = decide(Bound(share, per_s), used).wait_s
        wait_s = max(wait_s, min(left_over_s, share_wait_s))
    if wait_s > 0.0:
        return balance, max(1.0, wait_s)
    spent = {**balance.spent, **{name: balance.spent.get(name, 0.0) + 1.0 for name in holders}}
    return Balance(max(0.0, balance.tokens - 1.0), spent), 0.0
