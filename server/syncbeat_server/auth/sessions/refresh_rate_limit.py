"""Rate limits of refreshes, per process: genuine tokens count against their session, forged ones against the address.

They need no Redis. The limit of an address never affects genuine tokens, because many users share an address and an
attacker may be among them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import NamedTuple

from syncbeat_server.clock import Clock
from syncbeat_server.errors import RateLimited

DEFAULT_MAX_KEYS = 10_000  # sessions, and as many addresses: a megabyte or two
_WINDOW_S = 60.0


class _Bucket(NamedTuple):
    tokens: float
    updated_s: float


class _Buckets:
    """Token buckets by key: a burst of `per_minute`, refilled evenly."""

    def __init__(self, clock: Clock, per_minute: int, max_keys: int) -> None:
        self._clock = clock
        self._max_keys = max_keys
        self._per_minute = float(per_minute)
        self._buckets: OrderedDict[Hashable, _Bucket] = OrderedDict()

    def acquire(self, key: Hashable) -> float:
        """Take one token of `key`. Returns 0, or the seconds until there is one."""
        now = self._clock.monotonic()
        tokens, updated_s = self._buckets.get(key, _Bucket(self._per_minute, now))
        tokens = min(self._per_minute, tokens + (now - updated_s) / _WINDOW_S * self._per_minute)
        wait_s = 0.0 if tokens >= 1 else (1 - tokens) * _WINDOW_S / self._per_minute
        self._buckets[key] = _Bucket(tokens if wait_s else tokens - 1, now)
        self._buckets.move_to_end(key)
        if len(self._buckets) > self._max_keys:
            self._buckets.popitem(last=False)
        return wait_s


class RefreshRateLimit:
    """Counts refreshes by session and forged refresh tokens by address."""

    def __init__(
        self, clock: Clock, per_session: int, forged_per_address: int, max_keys: int = DEFAULT_MAX_KEYS
    ) -> None:
        """Take both limits, per minute; of more sessions or addresses than `max_keys` the least recent start over."""
        self._sessions = _Buckets(clock, per_session, max_keys)
        self._addresses = _Buckets(clock, forged_per_address, max_keys)

    def count_refresh(self, app_id: str, session_id: str) -> None:
        """Count a genuine refresh token of a session, before the database is asked.

        Raises:
            RateLimited: the session has been refreshed too often within the last minute.
        """
        _check(self._sessions.acquire((app_id, session_id)), "this session is refreshed too often")

    def count_forged(self, address: str) -> None:
        """Count a refresh token that we did not issue.

        Raises:
            RateLimited: the address sent too many of them within the last minute.
        """
        _check(self._addresses.acquire(address), "too many invalid refresh tokens from this address")


def _check(wait_s: float, message: str) -> None:
    if wait_s:
        raise RateLimited(message, retry_after_s=max(1.0, wait_s))
