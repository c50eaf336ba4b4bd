"""Removes the tombstones of keys that were deleted long ago, on any process, or on several at once."""

from __future__ import annotations

import logging

from syncbeat_server.clock import Clock
from syncbeat_server.errors import SyncbeatError
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.storage.retention import RetentionRule
from syncbeat_server.sync.store import tombstones
from syncbeat_server.sync.store.change_samples import forget_samples
from syncbeat_server.sync.store.device_cursors import forget_left

_log = logging.getLogger(__name__)

# First an hour after the start: by then no process of a version that does not know `scopes.pruned` serves any more.
EVERY_S = 3600.0
BATCH = 1_000
_PAUSE_S = 0.1

OLD_ROWS = (
    RetentionRule("change_samples", forget_samples),
    # Each time reads all cursors, so once a day is enough.
    RetentionRule("device_cursors", forget_left, every_s=86_400.0),
)


class TombstonePruner:
    """Keeps tombstones for `keep_days`, and for the rest of the day (UTC) after that."""

    def __init__(
        self, database: Database, keep_days: float, clock: Clock, every_s: float = EVERY_S, batch: int = BATCH
    ) -> None:
        self._database = database
        self._keep_days = keep_days
        self._clock = clock
        self._every_s = every_s
        self._batch = batch

    async def run(self) -> None:
        """Prune every hour, for ever."""
        while True:
            await self._clock.sleep(self._every_s)
            try:
                await self.prune()
            except SyncbeatError as error:
                _log.warning("cannot remove old tombstones now", extra={"reason": error.reason})

    async def prune(self) -> int:
        """Remove all tombstones that are old enough, batch by batch; return their number.

        Raises:
            DependencyDown: the database does not answer; the batches before are removed.
        """
        removed, since, more = 0, None, True
        while more:
            async with self._database.connection() as conn:
                gone, more, since = await tombstones.remove_old(conn, self._keep_days, self._batch, since)
            removed += gone
            if more:
                await self._clock.sleep(_PAUSE_S)
        if removed:
            _log.info("removed old tombstones", extra={"count": removed})
        return removed
