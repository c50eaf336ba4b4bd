"""Rate limits of refreshes, per process: genuine tokens count against their session, forged ones against the address.

They need no Redis. The limit of an address never affects genuine tokens, because many users share an address and an
attacker may be among them.
"""

from __future__ import annotations

from syncbeat_server.clock import Clock
from syncbeat_server.ratelimit.local_buckets import LocalBuckets
from syncbeat_server.ratelimit.model import Rate
from syncbeat_server.ratelimit.policy.decision import Decision, refusal

DEFAULT_MAX_KEYS = 10_000  # sessions, and as many addresses: a megabyte or two


class RefreshRateLimit:
    """Counts refreshes by session and forged refresh tokens by address."""

    def __init__(
        self, clock: Clock, per_session: int, forged_per_address: int, max_keys: int = DEFAULT_MAX_KEYS
    ) -> None:
        """Take both limits, per minute; of more sessions or addresses than `max_keys` the least recent start over."""
        self._sessions = LocalBuckets(clock, Rate(per_session / 60, per_session), max_keys)
        self._addresses = LocalBuckets(clock, Rate(forged_per_address / 60, forged_per_address), max_keys)

    def count_refresh(self, app_id: str, session_id: str) -> None:
        """Count a genuine refresh token of a session, before the database is asked.

        Raises:
            RateLimited: the session has been refreshed too often within the last minute.
        """
        _check(self._sessions.take((app_id, session_id)), "this session is refreshed too often")

    def count_link(self, app_id: str, issuer: str, subject: str) -> None:
        """Count a genuine token of a subject that is to be linked. Raises RateLimited as `count_refresh`."""
        _check(self._sessions.take((app_id, issuer, subject)), "this subject is linked too often")

    def count_forged(self, address: str) -> None:
        """Count a token that we did not issue.

        Raises:
            RateLimited: the address sent too many of them within the last minute.
        """
        _check(self._addresses.take(address), "too many invalid refresh tokens from this address")


def _check(decision: Decision, message: str) -> None:
    if not decision.allowed:
        raise refusal(message, decision, least_wait_s=1.0)
