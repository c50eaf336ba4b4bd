"""An app's own limits are one bucket in each process, whatever tiers its callers have and however often they change."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from syncbeat_server.ratelimit.lease import LeaseKey, LimitRule, PendingTake
from syncbeat_server.ratelimit.model import LimitSubject, MethodClass, Rate, Tier, TierLimit, TierPolicy
from syncbeat_server.ratelimit.rules import AppRules
from syncbeat_server.ratelimit.shared_limits import SharedLimits
from tests.ratelimit.test_shared_limits import CLOCK, SLOW, processes
from tests.support.fake_clock import wait_until

HINT = MethodClass.HINT
OF_APP = Rate(SLOW, 400)
OF_USER = Rate(SLOW, 1_000)


def limit(subject: LimitSubject, rate: Rate) -> TierLimit:
    return TierLimit(subject, HINT, rate, None)


def policy(pro: Rate = OF_USER, of_app: Rate = OF_APP) -> TierPolicy:
    free = Tier("free", (limit(LimitSubject.APP, of_app), limit(LimitSubject.PRINCIPAL, OF_USER)))
    tiers = {"free": free, "pro": Tier("pro", (limit(LimitSubject.PRINCIPAL, pro),)), "service": Tier("service", ())}
    return TierPolicy(tiers, "free", "plan")


def own(rules: AppRules) -> set[LimitRule]:
    """The rules by app that callers of all tiers, and services, are held against."""
    classes = [rules.without_tier, rules.of_services, *rules.by_tier.values()]
    return {one.rule for kind in classes for one in kind[HINT].rates if one.subject is LimitSubject.APP}


@pytest.mark.unit
def test_rate_limit_rule_of_an_app_is_one_for_all_tiers_and_stays_when_others_change() -> None:
    before = AppRules("shop", policy())
    after = AppRules("shop", policy(pro=Rate(1.0, 5)), before)
    assert len(own(before)) == 1
    assert own(after) == own(before)
    assert own(AppRules("shop", policy(of_app=Rate(1.0, 5)), after)).isdisjoint(own(before))


@pytest.mark.store
async def test_rate_limit_of_an_app_is_exact_for_users_of_several_tiers(redis_url: str) -> None:
    rules = [AppRules("shop", policy())]
    rules.append(AppRules("shop", policy(pro=Rate(SLOW, 500)), rules[0]))
    async with processes(redis_url, 3) as all_limits:
        await wait_until(lambda: all(one.share == 2.0 / 3.0 for one in all_limits))
        admitted = 0
        for limits in all_limits:
            while await is_admitted(limits, rules[0], "free"):
                admitted += 1
        # Those that ask later have their credit.
        assert 0.97 * OF_APP.burst <= admitted <= 1.05 * OF_APP.burst
        for limits in all_limits:
            for one in rules:
                assert [await is_admitted(limits, one, tier) for tier in ("free", "pro")] == [False, False]


async def is_admitted(limits: SharedLimits, rules: AppRules, tier: str) -> bool:
    wants = [(key, 1.0) for key in _keys(rules, tier)]
    taken = limits.take(wants, CLOCK.monotonic())
    return (await limits.finish(taken) if isinstance(taken, PendingTake) else taken) is None


def _keys(rules: AppRules, tier: str) -> Iterator[LeaseKey]:
    for one in rules.by_tier[tier][HINT].rates:
        yield (one.rule,) if one.subject is LimitSubject.APP else (one.rule, f"{tier}-user")
