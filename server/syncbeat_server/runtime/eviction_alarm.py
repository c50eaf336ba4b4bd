"""Warns when a cache evicts what is still of use: its working set does not fit."""

from __future__ import annotations

import logging

from syncbeat_server.clock import Clock

_log = logging.getLogger(__name__)

_WINDOW_S = 60.0
_SHARE = 0.05  # of the cache; fewer in a minute are devices that came once
_QUIET_S = 3600.0


class EvictionAlarm:
    """Counts the evictions of a cache, and warns, once an hour at most, when many within a minute were valid."""

    def __init__(self, clock: Clock, what: str, size: int) -> None:
        """Take the name of the entries (`what`) of a cache that holds `size` of them."""
        self._clock = clock
        self._what = what
        self._size = size
        self._window_ends_at = self._quiet_until = clock.monotonic()
        self._in_window = 0
        self.evictions = 0

    def record(self, *, is_valid: bool) -> None:
        """Count an eviction; `is_valid`: the entry could still have been used."""
        self.evictions += 1
        if not is_valid:
            return
        now = self._clock.monotonic()
        if now >= self._window_ends_at:
            self._window_ends_at, self._in_window = now + _WINDOW_S, 0
        self._in_window += 1
        if self._in_window > self._size * _SHARE and now >= self._quiet_until:
            self._quiet_until = now + _QUIET_S
            _log.warning(
                "more %s are in use than the cache holds, so they are read again and again: raise SYNCBEAT_CACHE_MIB",
                self._what,
                extra={"size": self._size, "evicted": self._in_window},
            )
