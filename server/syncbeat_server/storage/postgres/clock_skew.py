"""Measures the difference between this machine's clock and the database's.

The database's clock alone decides deadlines and order; tokens, certificates and log lines go by the machine's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from syncbeat_server.clock import Clock
from syncbeat_server.errors import SyncbeatError
from syncbeat_server.storage.postgres.database import Database

_log = logging.getLogger(__name__)

_EVERY_S = 60.0
_TOO_MUCH_S = 5.0
# The figure may be wrong by half the round trip: a longer one measures nothing.
_LONGEST_TRIP_S = 2.0


class ClockSkew:
    """Measures the skew, and warns once each time that it becomes too large."""

    def __init__(self, database: Database, clock: Clock, on_measured: Callable[[float], None]) -> None:
        """`on_measured(seconds)` gets by how much this machine is ahead of the database, for the metrics."""
        self._database = database
        self._clock = clock
        self._on_measured = on_measured
        self._warned = False

    async def run(self) -> None:
        """Measure each minute, for ever."""
        while True:
            try:
                await self.measure()
            except SyncbeatError as error:
                _log.info("cannot ask the database for the time now", extra={"reason": error.reason})
            await self._clock.sleep(_EVERY_S)

    async def measure(self) -> float | None:
        """Return by how many seconds this machine is ahead; None when the answer took too long to tell.

        Raises:
            DependencyDown: the database does not answer.
        """
        async with self._database.connection() as conn:
            await conn.fetchval("SELECT 1")  # opens the connection, whose cost is no part of the round trip
            before, began = self._clock.now(), self._clock.monotonic()
            theirs = await conn.fetchval("SELECT syncbeat_now()")
            trip_s = self._clock.monotonic() - began
        if trip_s > _LONGEST_TRIP_S:
            return None
        ahead_s = float((before - theirs).total_seconds()) + trip_s / 2
        self._on_measured(ahead_s)
        too_much = abs(ahead_s) > _TOO_MUCH_S
        if too_much and not self._warned:
            _log.warning(
                "the clocks of this machine and of the database differ: is NTP running?",
                extra={"ahead_s": round(ahead_s, 3)},
            )
        elif self._warned and not too_much:
            _log.info("the clocks of this machine and of the database agree again")
        self._warned = too_much
        return ahead_s
