"""Decides which tier a caller has. Pure."""

from __future__ import annotations

from syncbeat_server.defaults import SERVICE_TIER
from syncbeat_server.ratelimit.model import Tier, TierPolicy, TierSource, UserTier


def resolve_tier(policy: TierPolicy, stored_tier: str, claim_value: str) -> Tier | None:
    """Return a user's tier: the stored one, else that of its token's claim, else the default; None: no limits.

    A name that the app has no tier of counts as none, so that a tier can be taken out of the apps file while users have
    it, and no token can name itself out of the limits.
    """
    tier = _user_tier(policy, stored_tier)
    if tier is None and policy.claim:
        tier = _user_tier(policy, claim_value)
    return _user_tier(policy, policy.default_tier or "") if tier is None else tier


def grantable_tiers(policy: TierPolicy) -> list[str]:
    """Return the names of the tiers that a user can have, in order."""
    return sorted(set(policy.tiers) - {SERVICE_TIER})


def _user_tier(policy: TierPolicy, name: str) -> Tier | None:
    return policy.tiers.get(name) if name and name != SERVICE_TIER else None


def describe_tier(policy: TierPolicy, stored_tier: str) -> UserTier:
    """Describe a user's tier without the user's token, whose claim may name another unless one was set."""
    tier = resolve_tier(policy, stored_tier, "")
    name = "" if tier is None else tier.name
    if _user_tier(policy, stored_tier) is not None:
        return UserTier(name, TierSource.SET, stored_tier)
    return UserTier(name, TierSource.CLAIM if policy.claim else TierSource.DEFAULT, stored_tier)
