"""Compiles the tiers of an app into the rules of each class of calls, once, so that a call only looks them up.

A call of a user is held against the limits of its tier, one of a service against those of the tier `service`, and both
against the app's own: the limits by app of its default tier. Limits by app of another tier count its users together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from syncbeat_server.defaults import SERVICE_TIER
from syncbeat_server.ratelimit.lease import LimitRule
from syncbeat_server.ratelimit.model import LimitSubject, MethodClass, Tier, TierLimit, TierPolicy


class CountedRule(NamedTuple):
    """A rule that a call is counted by, and its subject."""

    subject: LimitSubject
    rule: LimitRule
    by_octets: bool


class CountedQuota(NamedTuple):
    """A monthly quota that a call is counted by; `tier`, of one by app, as in `QuotaCharge`."""

    limit: TierLimit
    tier: str
    by_octets: bool


ClassQuotas = Mapping[MethodClass, tuple[CountedQuota, ...]]
"""The quotas of calls of each class, as `ClassRules`."""
ClassRules = Mapping[MethodClass, tuple[CountedRule, ...]]
"""The rules of calls of each class; those of octets hold for every class and are among them."""


class AppRules:
    """The rules of one app's callers, by tier."""

    def __init__(self, app_id: str, policy: TierPolicy) -> None:
        self.policy = policy
        default = policy.tiers.get(policy.default_tier or "")
        own = list(_rules(f"{app_id}:app", default, LimitSubject.APP))
        self.without_tier = _by_class(own)
        self.by_tier: dict[str, ClassRules] = {}
        for name, tier in policy.tiers.items():
            together = [] if tier is default else list(_rules(f"{app_id}:tier:{name}", tier, LimitSubject.APP))
            owner = "service" if name == SERVICE_TIER else "user"
            self.by_tier[name] = _by_class([*_rules(f"{app_id}:{owner}", tier), *together, *own])
        all_callers = [one for one in _quotas(default, "") if one.limit.subject is LimitSubject.APP]
        self._quotas_without_tier = _quotas_by_class(all_callers)
        self._quotas_by_tier = {
            name: _quotas_by_class(_quotas(tier, "") if tier is default else [*_quotas(tier, name), *all_callers])
            for name, tier in policy.tiers.items()
        }
        self.has_quotas = any(_quotas(tier, "") for tier in policy.tiers.values())

    def of_user(self, tier: Tier | None) -> ClassRules:
        """Return the rules of users with a tier; None: without one."""
        return self.without_tier if tier is None else self.by_tier.get(tier.name, self.without_tier)

    def quotas_of_user(self, tier: Tier | None) -> ClassQuotas:
        """Return the quotas of users with a tier; None: without one."""
        none = self._quotas_without_tier
        return none if tier is None else self._quotas_by_tier.get(tier.name, none)

    @property
    def quotas_of_services(self) -> ClassQuotas:
        """Return the quotas of services."""
        return self._quotas_by_tier.get(SERVICE_TIER, self._quotas_without_tier)

    @property
    def of_services(self) -> ClassRules:
        """Return the rules of services."""
        return self.by_tier.get(SERVICE_TIER, self.without_tier)


def _rules(owner: str, tier: Tier | None, subject: LimitSubject | None = None) -> Iterator[CountedRule]:
    """Yield the rates of a tier by one subject; None: by all but the app."""
    for limit in () if tier is None else tier.limits:
        if limit.rate is not None and (limit.subject is subject if subject else limit.subject is not LimitSubject.APP):
            prefix = f"{owner}:{limit.subject}:{limit.method_class}:"
            rule = LimitRule(prefix, limit.rate, limit.subject, limit.method_class)
            yield CountedRule(limit.subject, rule, limit.method_class is MethodClass.BYTES)


def _by_class(rules: list[CountedRule]) -> ClassRules:
    return {kind: tuple(one for one in rules if one.by_octets or one.rule.method_class is kind) for kind in MethodClass}


def _quotas(tier: Tier | None, name: str) -> list[CountedQuota]:
    """Return the quotas of a tier, of which those by app count what `name` says."""
    return [
        CountedQuota(limit, name if limit.subject is LimitSubject.APP else "", limit.method_class is MethodClass.BYTES)
        for limit in (() if tier is None else tier.limits)
        if limit.monthly_quota is not None
    ]


def _quotas_by_class(quotas: list[CountedQuota]) -> ClassQuotas:
    return {
        kind: tuple(one for one in quotas if one.by_octets or one.limit.method_class is kind) for kind in MethodClass
    }
