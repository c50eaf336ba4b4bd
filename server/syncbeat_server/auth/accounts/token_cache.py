"""Access tokens that were checked, by their digest: bounded, and for a minute at most."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from syncbeat_server.auth.accounts.account_status_cache import KeptStanding
from syncbeat_server.auth.model import Principal, VerifiedToken
from syncbeat_server.clock import Clock

KEPT_S = 60.0


@dataclass(frozen=True)
class CacheStats:
    """How well the cache works, since the process started."""

    size: int
    hits: int
    misses: int
    evictions: int


class _Entry:
    __slots__ = ("principal", "standing", "until")

    def __init__(self, principal: Principal, standing: KeptStanding, until: float) -> None:
        self.principal = principal
        self.standing = standing
        self.until = until


class TokenCache:
    """Holds the principals of checked tokens; at most `size`, those unused for longest go first."""

    def __init__(self, clock: Clock, size: int) -> None:
        self._clock = clock
        self._size = size
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self._hits = self._misses = self._evictions = 0

    def find(self, digest: bytes) -> Principal | None:
        """The bearer of a token that was checked within the minute and has not been taken back since."""
        entry = self._entries.get(digest)
        if entry is not None:
            now = self._clock.monotonic()
            if entry.until > now and entry.standing.until > now:
                self._hits += 1
                self._entries.move_to_end(digest)
                return entry.principal
        self._misses += 1
        return None

    def has(self, digest: bytes) -> bool:
        """Tell if `find` would find it, without counting a hit or a miss."""
        entry = self._entries.get(digest)
        if entry is None:
            return False
        now = self._clock.monotonic()
        return entry.until > now and entry.standing.until > now

    def keep(self, digest: bytes, principal: Principal, token: VerifiedToken, standing: KeptStanding) -> None:
        """Remember a token that is good, for a minute, but not beyond its own end."""
        left = (token.expires_at + token.issuer.leeway - self._clock.now()).total_seconds()
        until = self._clock.monotonic() + min(KEPT_S, left)
        self._entries[digest] = _Entry(principal, standing, until)
        self._entries.move_to_end(digest)
        while len(self._entries) > self._size:
            self._entries.popitem(last=False)
            self._evictions += 1

    def forget(self, app_id: str | None, user_id: str = "", session_id: str = "") -> int:
        """Forget the tokens of a user, of a session, or of a whole app (of every app for None): how many there were.

        It looks at every token, and is for operators: a revocation only ends the standing, which ends the tokens.
        """
        digests = [
            digest
            for digest, entry in self._entries.items()
            if app_id in (None, entry.principal.app_id)
            and user_id in ("", entry.principal.name)
            and session_id in ("", _session(entry.principal))
        ]
        for digest in digests:
            del self._entries[digest]
        return len(digests)

    def stats(self) -> CacheStats:
        """The figures."""
        return CacheStats(len(self._entries), self._hits, self._misses, self._evictions)


def _session(principal: Principal) -> str:
    return "" if principal.token is None else principal.token.session_id
