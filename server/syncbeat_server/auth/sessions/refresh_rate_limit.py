"""Limits on refreshing, each process by itself: genuine tokens count for their session, forged ones for their address.

They need no Redis. No limit on an address ever meets a genuine token: many users share an address, and whoever
forges tokens there is one of them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import NamedTuple

from syncbeat_server.clock import Clock
from syncbeat_server.errors import RateLimited

_MAX_KEYS = 10_000  # of each kind, a megabyte or two; the one unused for longest is forgotten, and begins anew
_WINDOW_S = 60.0


class _Bucket(NamedTuple):
    left: float
    at: float


class _Buckets:
    """A token bucket a key: `per_minute` at once, refilled evenly."""

    def __init__(self, clock: Clock, per_minute: int) -> None:
        self._clock = clock
        self._per_minute = float(per_minute)
        self._buckets: OrderedDict[Hashable, _Bucket] = OrderedDict()

    def take(self, key: Hashable) -> float:
        """Take one of `key`: 0, or the seconds until there is one."""
        now = self._clock.monotonic()
        left, at = self._buckets.get(key, _Bucket(self._per_minute, now))
        left = min(self._per_minute, left + (now - at) / _WINDOW_S * self._per_minute)
        wait_s = 0.0 if left >= 1 else (1 - left) * _WINDOW_S / self._per_minute
        self._buckets[key] = _Bucket(left if wait_s else left - 1, now)
        self._buckets.move_to_end(key)
        if len(self._buckets) > _MAX_KEYS:
            self._buckets.popitem(last=False)
        return wait_s


class RefreshLimits:
    """Counts renewals by session and forged tokens by address."""

    def __init__(self, clock: Clock, per_session: int, forged_per_address: int) -> None:
        """Both limits are per minute."""
        self._sessions = _Buckets(clock, per_session)
        self._addresses = _Buckets(clock, forged_per_address)

    def renewal(self, app_id: str, session_id: str) -> None:
        """Count a genuine token of a session, before the database is asked about it.

        Raises:
            RateLimited: the session had too many within the minute.
        """
        _check(self._sessions.take((app_id, session_id)), "this session is refreshed too often")

    def forged(self, address: str) -> None:
        """Count a token that was not made here.

        Raises:
            RateLimited: the address brought too many of them within the minute.
        """
        _check(self._addresses.take(address), "too many invalid refresh tokens from this address")


def _check(wait_s: float, message: str) -> None:
    if wait_s:
        raise RateLimited(message, retry_after_s=max(1.0, wait_s))
