"""The two caches of one process by which callers are admitted, and their joint invalidation."""

from __future__ import annotations

from dataclasses import dataclass

from syncbeat_server.auth.accounts.account_status_cache import NEGATIVE_CACHE_S, AccountStatusCache
from syncbeat_server.auth.accounts.token_cache import TokenCache
from syncbeat_server.clock import Clock
from syncbeat_server.storage.postgres.database import Database


@dataclass(frozen=True)
class CallerCaches:
    """Account statuses and verified tokens, each under its own key."""

    statuses: AccountStatusCache
    tokens: TokenCache

    def invalidate_user(self, app_id: str, user_id: str) -> None:
        """Drop a user's statuses, and so its tokens: it may have been disabled, deleted or revoked."""
        self.statuses.invalidate_user(app_id, user_id)

    def invalidate(self, app_id: str, user_id: str, session_id: str) -> int:
        """Drop the statuses and tokens of a user or a session, either of which may be empty.

        Returns:
            The number of tokens that were cached.
        """
        if user_id:
            self.statuses.invalidate_user(app_id, user_id)
        else:
            self.statuses.invalidate_session(app_id, session_id)
        return self.tokens.remove(app_id, user_id, session_id)

    def invalidate_app(self, app_id: str | None = None) -> int:
        """Drop all statuses and tokens of an app, or of every app for None. Returns the number of tokens."""
        self.statuses.invalidate_app(app_id)
        return self.tokens.remove(app_id)


def caller_caches(
    database: Database, clock: Clock, size: int, negative_cache_s: float = NEGATIVE_CACHE_S
) -> CallerCaches:
    """Return empty caches of at most `size` entries each."""
    return CallerCaches(AccountStatusCache(database, clock, size, negative_cache_s), TokenCache(clock, size))
