"""Keeps each app's tiers as the apps file describes them now."""

from __future__ import annotations

import math
from collections.abc import Mapping

from syncbeat_server.app.app_configuration import AppConfiguration
from syncbeat_server.ops.settings.app import AppSettings
from syncbeat_server.ops.settings.tiers import LimitSettings, TierSettings
from syncbeat_server.ratelimit.model import (
    UNLIMITED,
    LimitSubject,
    MethodClass,
    Rate,
    Tier,
    TierLimit,
    TierPolicy,
)


class TierPolicies:
    """Present tiers of each app, made anew when the apps file changes."""

    def __init__(self, apps: AppConfiguration) -> None:
        self._apps = apps
        self._policies: dict[str, TierPolicy] = {}
        self._make()
        apps.on_change(self._make)

    def all(self) -> Mapping[str, TierPolicy]:
        """Return the tiers of every app."""
        return self._policies

    def of(self, app_id: str) -> TierPolicy:
        """Return the tiers of an app; no limits for an app that is not known."""
        return self._policies.get(app_id, UNLIMITED)

    def _make(self) -> None:
        self._policies = {app_id: tier_policy(app) for app_id, app in self._apps.current.items()}


def tier_policy(app: AppSettings) -> TierPolicy:
    """Return the tiers that an app's settings describe."""
    return TierPolicy(
        tiers={name: _tier(name, tier) for name, tier in app.tiers.items()},
        default_tier=app.default_tier or None,
        claim=app.tier_claim or None,
        time_zone=app.quota_time_zone,
    )


def _tier(name: str, given: TierSettings) -> Tier:
    limits = [
        _limit(subject, method_class, limit)
        for subject in LimitSubject
        for method_class in MethodClass
        if (limit := getattr(getattr(given, subject), method_class)) is not None
    ]
    return Tier(name, tuple(limits))


def _limit(subject: LimitSubject, method_class: MethodClass, given: LimitSettings) -> TierLimit:
    rate = None
    if given.per_second is not None:
        rate = Rate(given.per_second, given.burst or max(1, math.ceil(given.per_second)))
    return TierLimit(subject, method_class, rate, given.monthly_quota)
