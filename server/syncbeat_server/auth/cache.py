"""Access tokens that were checked, by their digest: bounded, and for a minute at most."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from dataclasses import dataclass

from syncbeat_server.auth.model import Principal, VerifiedToken
from syncbeat_server.auth.standings import KeptStanding
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
        self._of_user: defaultdict[tuple[str, str], set[bytes]] = defaultdict(set)
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

    def keep(self, digest: bytes, principal: Principal, token: VerifiedToken, standing: KeptStanding) -> None:
        """Remember a token that is good, for a minute, but not beyond its own end."""
        left = (token.expires_at + token.issuer.leeway - self._clock.now()).total_seconds()
        until = self._clock.monotonic() + min(KEPT_S, left)
        self._entries[digest] = _Entry(principal, standing, until)
        self._entries.move_to_end(digest)
        self._of_user[principal.app_id, principal.name].add(digest)
        while len(self._entries) > self._size:
            oldest, entry = self._entries.popitem(last=False)
            self._unindex(oldest, entry.principal)
            self._evictions += 1

    def forget(self, app_id: str | None, user_id: str = "", session_id: str = "") -> int:
        """Forget the tokens of a user, of a session, or of a whole app (of every app for None): how many there were."""
        if user_id:
            digests = list(self._of_user.get((app_id or "", user_id), ()))
        else:
            digests = [digest for digest, entry in self._entries.items() if app_id in (None, entry.principal.app_id)]
        if session_id:
            digests = [digest for digest in digests if _session(self._entries[digest].principal) == session_id]
        for digest in digests:
            self._unindex(digest, self._entries.pop(digest).principal)
        return len(digests)

    def stats(self) -> CacheStats:
        """The figures."""
        return CacheStats(len(self._entries), self._hits, self._misses, self._evictions)

    def _unindex(self, digest: bytes, principal: Principal) -> None:
        digests = self._of_user[principal.app_id, principal.name]
        digests.discard(digest)
        if not digests:
            del self._of_user[principal.app_id, principal.name]


def _session(principal: Principal) -> str:
    return "" if principal.token is None else principal.token.session_id
