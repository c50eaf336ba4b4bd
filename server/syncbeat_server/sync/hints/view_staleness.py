"""Bounds the staleness of cached views: they are dropped if not compared with the database for 8 s (ADR 42)."""

from __future__ import annotations

from syncbeat_server.clock import Clock

MAX_STALENESS_S = 8.0
"""Seconds for which views are served after they were last compared with the database: a sweep and half of another."""


class StalenessBound:
    """Holds the moment until which what is cached may be served, from one comparison with the database to the next."""

    __slots__ = ("_clock", "_max_staleness_s", "expires_at")

    def __init__(self, clock: Clock, max_staleness_s: float) -> None:
        self._clock = clock
        self._max_staleness_s = max_staleness_s
        self.expires_at = 0.0
        """The monotonic moment from which all that is cached is to be dropped. An attribute: each poll reads it."""
        self.restart()

    def restart(self) -> None:
        """Begin anew, as nothing is cached that could be stale."""
        self.compared_at(self._clock.monotonic())

    def compared_at(self, moment: float) -> None:
        """Note that what is cached agreed with the database as of a monotonic moment."""
        self.expires_at = moment + self._max_staleness_s
