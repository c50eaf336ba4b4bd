"""Records the cursors that devices have shown, and those that their calls were answered with."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Sequence

from syncbeat_server.clock import Clock
from syncbeat_server.errors import SyncbeatError
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.sync.model import Cursor, DeviceKey
from syncbeat_server.sync.store import device_cursors

_log = logging.getLogger(__name__)

MAX_PENDING = 50_000
_BATCH = 1_000
_PAUSE_S = 0.02
_RETRY_S = 1.0


class CursorRecorder:
    """Writes the newest cursor of each device and scope in the background, off the callers' path.

    Cursors that a crash loses cost at most a push that was not needed.
    """

    def __init__(self, database: Database, clock: Clock, max_pending: int = MAX_PENDING) -> None:
        self._database = database
        self._max_pending = max_pending
        self._clock = clock
        self._shown = _NewestCursors(max_pending)
        self._fetched = _NewestCursors(max_pending)
        self._recently_fetched = _NewestCursors(max_pending)
        self._is_full = False
        self._pending = asyncio.Event()

    def record_shown(self, device: DeviceKey, cursors: Sequence[Cursor]) -> None:
        """Record that a device showed these cursors: it has everything up to them."""
        if self._shown.update_newer(device, cursors):
            self._pending.set()
        self._warn_if_full(self._shown)

    def record_fetched(self, device: DeviceKey, cursors: Sequence[Cursor]) -> None:
        """Record that a device's call was answered with these cursors: a wake-up for them was answered."""
        if len(self._recently_fetched) >= self._max_pending:
            self._recently_fetched.clear()
        # A device that gets the same answer again and shows no progress costs no statement each time.
        new = self._recently_fetched.update_newer(device, cursors)
        if self._fetched.update_newer(device, new):
            self._pending.set()
        self._warn_if_full(self._fetched)

    def clear(self) -> None:
        """Forget pending cursors after a restore: they may be of changes that it took back."""
        for newest in (self._shown, self._fetched, self._recently_fetched):
            newest.clear()

    async def run(self) -> None:
        """Write pending cursors, for ever."""
        while True:
            await self._pending.wait()
            self._pending.clear()
            try:
                await self.flush()
                await self._clock.sleep(_PAUSE_S)
            except SyncbeatError as error:
                _log.warning("cursors not recorded yet", extra={"reason": error.reason})
                self._pending.set()
                await self._clock.sleep(_RETRY_S)

    async def flush(self) -> None:
        """Write all pending cursors now. Raises DependencyDown."""
        self._is_full = False
        for newest, write in (
            (self._shown, device_cursors.record_shown),
            (self._fetched, device_cursors.record_fetched),
        ):
            while newest:
                batch = dict(itertools.islice(newest.items(), _BATCH))
                async with self._database.connection() as conn:
                    await write(conn, [(device, cursor) for (device, _), cursor in batch.items()])
                for key, cursor in batch.items():
                    if newest.get(key) is cursor:
                        del newest[key]

    def _warn_if_full(self, newest: _NewestCursors) -> None:
        if len(newest) >= self._max_pending and not self._is_full:
            self._is_full = True
            _log.warning(
                "too many cursors wait to be recorded: others are not, and their devices may be woken once more"
            )


class _NewestCursors(dict[tuple[DeviceKey, str], Cursor]):
    """Holds the newest cursor of each device and scope, at most `most` of them."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def update_newer(self, device: DeviceKey, cursors: Sequence[Cursor]) -> list[Cursor]:
        """Keep the cursors that are newer than those held; return them."""
        updated = []
        for cursor in cursors:
            if cursor.sequence is None or not cursor.epoch:
                continue
            key = device, cursor.scope
            held = self.get(key)
            if held is None and len(self) >= self._most:
                continue
            if held is None or held.epoch != cursor.epoch or (held.sequence or 0) < cursor.sequence:
                self[key] = cursor
                updated.append(cursor)
        return updated
