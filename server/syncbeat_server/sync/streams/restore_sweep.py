"""Notices that the database was restored, after which everything in memory may be wrong and no notification says so."""

from __future__ import annotations

import logging
from collections.abc import Callable

from syncbeat_server.clock import Clock
from syncbeat_server.errors import SyncbeatError
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.storage.postgres.restore_detection import lineage
from syncbeat_server.sync.model import DEFAULT_SWEEP, SweepRule

_log = logging.getLogger(__name__)

_EVERY_WHEN_DOWN_S = 1.0


class RestoreSweep:
    """Compares the database's lineage with the last one seen."""

    def __init__(
        self, database: Database, clock: Clock, restored: Callable[[], None], rule: SweepRule = DEFAULT_SWEEP
    ) -> None:
        """`restored` is called after a restore or a restart of PostgreSQL, since a restore may lie behind it."""
        self._database = database
        self._clock = clock
        self._restored = restored
        self._every_s = rule.every_s
        self._lineage: str | None = None

    async def run(self) -> None:
        """Sweep for ever, and each second while the database does not answer."""
        while True:
            pause = self._every_s
            try:
                await self.sweep()
            except SyncbeatError as error:
                _log.warning("cannot look at the database now", extra={"reason": error.reason})
                pause = _EVERY_WHEN_DOWN_S
            await self._clock.sleep(pause)

    async def sweep(self) -> None:
        """Compare the lineage once. Raises DependencyDown."""
        async with self._database.connection() as conn:
            found = await lineage(conn)
        if found != self._lineage:
            if self._lineage is not None:
                _log.warning("PostgreSQL was restarted or restored; everything is looked at anew")
                self._restored()
            self._lineage = found
