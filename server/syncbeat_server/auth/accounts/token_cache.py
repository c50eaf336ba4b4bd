"""Caches verified access tokens by digest, in bounded number and for a minute at most."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from syncbeat_server.auth.accounts.account_status_cache import MOST_REMOVED, CachedStatus
from syncbeat_server.auth.model import Principal, VerifiedToken
from syncbeat_server.clock import Clock
from syncbeat_server.runtime.eviction_alarm import EvictionAlarm

CACHE_S = 60.0


@dataclass(frozen=True)
class CacheStats:
    """Statistics of a token cache since its process started."""

    size: int
    hits: int
    misses: int
    evictions: int


class _Entry:
    __slots__ = ("principal", "status", "valid_until")

    def __init__(self, principal: Principal, status: CachedStatus, valid_until: float) -> None:
        self.principal = principal
        self.status = status
        self.valid_until = valid_until


class TokenCache:
    """Least-recently-used cache of at most `size` principals by the digest of their token."""

    def __init__(self, clock: Clock, size: int) -> None:
        self._clock = clock
        self._size = size
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self._hits = self._misses = 0
        self._evicted = EvictionAlarm(clock, "checked tokens", size)

    def find(self, digest: bytes) -> Principal | None:
        """Return the bearer of a token that was verified within the last minute and not invalidated since."""
        entry = self._entries.get(digest)
        if entry is not None:
            now = self._clock.monotonic()
            if entry.valid_until > now and entry.status.valid_until > now:
                self._hits += 1
                self._entries.move_to_end(digest)
                return entry.principal
        self._misses += 1
        return None

    def has(self, digest: bytes) -> bool:
        """Tell if `find` would find the bearer, without counting a hit or a miss."""
        entry = self._entries.get(digest)
        if entry is None:
            return False
        now = self._clock.monotonic()
        return entry.valid_until > now and entry.status.valid_until > now

    def put(self, digest: bytes, principal: Principal, token: VerifiedToken, status: CachedStatus) -> None:
        """Cache a verified token until its own expiry, a minute at most; it also ends with `status`."""
        left = (token.expires_at + token.issuer.leeway - self._clock.now()).total_seconds()
        valid_until = self._clock.monotonic() + min(CACHE_S, left)
        self._entries[digest] = _Entry(principal, status, valid_until)
        self._entries.move_to_end(digest)
        self._remove_oldest()

    def _remove_oldest(self) -> None:
        """Remove what is over the size, and entries that ended, which would fill the cache with tokens used no more."""
        now = self._clock.monotonic()
        for _ in range(MOST_REMOVED):
            digest = next(iter(self._entries), None)
            if digest is None:
                return
            oldest = self._entries[digest]
            is_valid = oldest.valid_until > now and oldest.status.valid_until > now
            if len(self._entries) > self._size:
                self._evicted.record(is_valid=is_valid)
            elif is_valid:
                return
            del self._entries[digest]

    def remove(self, app_id: str | None, user_id: str = "", session_id: str = "") -> int:
        """Remove the tokens of a user, a session or a whole app (every app for None). Returns how many there were.

        This scans the whole cache, for operators; a revocation invalidates the account status, which ends the tokens.
        """
        digests = [
            digest
            for digest, entry in self._entries.items()
            if app_id in (None, entry.principal.app_id)
            and user_id in ("", entry.principal.name)
            and session_id in ("", _session_id(entry.principal))
        ]
        for digest in digests:
            del self._entries[digest]
        return len(digests)

    def stats(self) -> CacheStats:
        """Return the statistics."""
        return CacheStats(len(self._entries), self._hits, self._misses, self._evicted.evictions)


def _session_id(principal: Principal) -> str:
    return "" if principal.token is None else principal.token.session_id
