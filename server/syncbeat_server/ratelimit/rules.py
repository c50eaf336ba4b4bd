"""Compiles the tiers of an app into the rules of each class of calls, once, so that a call only looks them up.

A call of a user is held against the limits of its tier, one of a service against those of the tier `service`, and both
against the app's own: the limits by app of its default tier. Limits by app of another tier count its users together
(ADR 136).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from syncbeat_server.defaults import SERVICE_TIER
from syncbeat_server.ratelimit.lease import LimitRule, Want
from syncbeat_server.ratelimit.model import LimitSubject, MethodClass, Rate, Tier, TierLimit, TierPolicy
from syncbeat_server.ratelimit.policy.tiers import resolve_tier

_WITH_QUOTAS = (LimitSubject.APP, LimitSubject.PRINCIPAL)


class CountedRate(NamedTuple):
    """A rate that a call is counted by, and its subject."""

    subject: LimitSubject
    rule: LimitRule
    by_octets: bool


class CountedQuota(NamedTuple):
    """A monthly quota that a call is counted by. `tier`, of a limit by app: that whose users it counts together."""

    limit: TierLimit
    tier: str
    by_octets: bool


@dataclass(frozen=True, slots=True, eq=False)
class CallRules:
    """The rules of the calls of one class by callers of one tier. Compared by identity: the object names app and tier.

    `by_device`, `by_scope`: a rate is counted by what a request names.
    """

    rates: tuple[CountedRate, ...]
    quotas: tuple[CountedQuota, ...]
    by_device: bool
    by_scope: bool


ClassRules = Mapping[str, CallRules]
"""The rules of calls of each class, by its value; those of octets hold for every class and are among them."""
_MAX_RESOLVED = 1_000


class _Given(NamedTuple):
    # A limit as a tier gives it, the owner under whose name it is counted, and the tier that it counts together.
    limit: TierLimit
    owner: str
    tier: str = ""


class AppRules:
    """The rules of one app's callers, by tier. Of one rate under one name there is one rule, whatever tier it comes by.

    A process may use units on credit once for each rule and caller: two rules would be two credits of one bucket.
    """

    def __init__(self, app_id: str, policy: TierPolicy, before: AppRules | None = None) -> None:
        """`before`: the app's rules until now, of which those that stay are the same objects."""
        self.app_id = app_id
        self.policy = policy
        self._known: dict[tuple[str, Rate], LimitRule] = {}
        self._before = {} if before is None else before._known
        default = policy.tiers.get(policy.default_tier or "")
        own = [_Given(limit, f"{app_id}:app") for limit in _of_app(default)]
        self.without_tier = self._by_class(own)
        self.by_tier: dict[str, ClassRules] = {}
        self.resolved: dict[tuple[str, str, str], CallRules] = {}
        """What `of_user` returned, by what it was asked."""
        for name, tier in policy.tiers.items():
            owner = f"{app_id}:service" if name == SERVICE_TIER else f"{app_id}:user"
            given = [_Given(limit, owner) for limit in tier.limits if limit.subject is not LimitSubject.APP]
            if tier is not default:
                given += [_Given(limit, f"{app_id}:tier:{name}", name) for limit in _of_app(tier)]
            self.by_tier[name] = self._by_class([*given, *own])
        self._before = {}

    def of_user(self, stored_tier: str, claimed_tier: str, method_class: str) -> CallRules:
        """Return the rules of a user whose tier was set to one, and whose token claims another; empty: none."""
        tier = resolve_tier(self.policy, stored_tier, claimed_tier)
        rules = (self.without_tier if tier is None else self.by_tier[tier.name])[method_class]
        if len(self.resolved) < _MAX_RESOLVED:  # a claim may be anything
            self.resolved[stored_tier, claimed_tier, method_class] = rules
        return rules

    @property
    def of_services(self) -> ClassRules:
        """Return the rules of services."""
        return self.by_tier.get(SERVICE_TIER, self.without_tier)

    def _by_class(self, given: Sequence[_Given]) -> ClassRules:
        rates = [self._rate(one, one.limit.rate) for one in given if one.limit.rate is not None]
        quotas = [
            CountedQuota(one.limit, one.tier, one.limit.method_class is MethodClass.BYTES)
            for one in given
            if one.limit.monthly_quota is not None and one.limit.subject in _WITH_QUOTAS
        ]
        return {
            kind.value: _call_rules(
                tuple(one for one in rates if one.by_octets or one.rule.method_class is kind),
                tuple(one for one in quotas if one.by_octets or one.limit.method_class is kind),
            )
            for kind in MethodClass
        }

    def _rate(self, given: _Given, rate: Rate) -> CountedRate:
        limit = given.limit
        # The state of a bucket is a time, which is so many units by one rate and others by another (ADR 207).
        prefix = f"{given.owner}:{limit.subject}:{limit.method_class}:{rate.per_second:.9g}/{rate.burst}:"
        key = prefix, rate
        rule = self._known.get(key) or self._before.get(key)
        if rule is None:
            rule = LimitRule(prefix, rate, limit.subject, limit.method_class)
        self._known[key] = rule
        return CountedRate(limit.subject, rule, limit.method_class is MethodClass.BYTES)


def count_by_scope(rule: LimitRule, scopes: Iterable[str], user_id: str, cost: float) -> list[Want]:
    """Return what a call takes of a rate by scope: of each scope once, and of an end user's own count of that scope.

    A user's calls are counted apart from those of others, and of services (an empty id): so nobody uses up the rate of
    a scope by naming it.
    """
    return [((rule, scope, user_id), cost) for scope in scopes]


def _of_app(tier: Tier | None) -> Iterator[TierLimit]:
    return (limit for limit in (tier.limits if tier else ()) if limit.subject is LimitSubject.APP)


def _call_rules(rates: tuple[CountedRate, ...], quotas: tuple[CountedQuota, ...]) -> CallRules:
    subjects = {rate.subject for rate in rates}
    return CallRules(rates, quotas, LimitSubject.DEVICE in subjects, LimitSubject.SCOPE in subjects)
