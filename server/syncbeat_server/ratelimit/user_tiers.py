"""Grants tiers to users and tells which they have."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from syncbeat_server.errors import FieldReason, FieldViolation, InvalidRequest
from syncbeat_server.ratelimit.model import TierPolicy, UserTier
from syncbeat_server.ratelimit.policy.tiers import describe_tier, grantable_tiers
from syncbeat_server.ratelimit.store import user_tiers
from syncbeat_server.storage.postgres.database import Connection, Database


def check_tier(policy: TierPolicy, tier: str) -> None:
    """Check that a tier can be granted to users; an empty one takes a grant back. Raises InvalidRequest."""
    known = grantable_tiers(policy)
    if tier and tier not in known:
        names = ", ".join(known) or "none"
        raise InvalidRequest(
            FieldViolation("tier", f"no tier of this app's users, who have: {names}", FieldReason.UNKNOWN_VALUE)
        )


RecordGrant = Callable[[Connection, str, str, str], Awaitable[None]]
"""Records the grant of (app, user, tier) in the caller's transaction; the audit log's part."""


async def grant_tier(conn: Connection, app_id: str, user_id: str, tier: str) -> None:
    """Grant a tier to a user, or none for an empty name, in the caller's transaction."""
    if tier:
        await user_tiers.set_tier(conn, app_id, user_id, tier)
    else:
        await user_tiers.clear_tier(conn, app_id, user_id)


class UserTiers:
    """Grants tiers to users, known or not yet: a grant lets nobody in, and waits for a user who comes later."""

    def __init__(
        self,
        database: Database,
        policy_of: Callable[[str], TierPolicy],
        caller_changed: Callable[[str, str], None],
        record_grant: RecordGrant,
    ) -> None:
        """`caller_changed(app, user)` is called after each commit, so that no process goes by the former tier."""
        self._database = database
        self._policy_of = policy_of
        self._caller_changed = caller_changed
        self._record_grant = record_grant

    async def set(self, app_id: str, user_id: str, tier: str) -> UserTier:
        """Grant a tier to a user, or none for an empty name; return which the user has now.

        Raises:
            InvalidRequest: the app has no such tier.
        """
        policy = self._policy_of(app_id)
        check_tier(policy, tier)
        async with self._database.transaction() as conn:
            await grant_tier(conn, app_id, user_id, tier)
            await self._record_grant(conn, app_id, user_id, tier)
        self._caller_changed(app_id, user_id)
        return describe_tier(policy, tier)

    async def get(self, app_id: str, user_id: str) -> UserTier:
        """Return which tier a user has, as far as it is known without the user's token."""
        async with self._database.connection() as conn:
            return describe_tier(self._policy_of(app_id), await user_tiers.find_tier(conn, app_id, user_id))
