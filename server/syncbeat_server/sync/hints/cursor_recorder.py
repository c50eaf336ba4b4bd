"""What devices have shown, and up to where their calls were answered."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Sequence

from syncbeat_server.clock import Clock
from syncbeat_server.errors import SyncbeatError
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.sync.model import Cursor, DeviceKey
from syncbeat_server.sync.store import changes
from syncbeat_server.sync.store.answered import record_fetched

_log = logging.getLogger(__name__)

_MAX_SEEN = 50_000
_SEEN_BATCH = 1_000
_SEEN_PAUSE_S = 0.02
_SEEN_RETRY_S = 1.0


class SeenRecorder:
    """Writes down which cursors devices have shown, and up to where their calls were answered, off the callers' path:
    the newest for each device and scope.

    What a crash loses of it costs at most a push that was not needed.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._shown = _Newest()
        self._fetched = _Newest()
        self._told = _Newest()
        self._is_full = False
        self._noted = asyncio.Event()

    def note(self, device: DeviceKey, cursors: Sequence[Cursor]) -> None:
        """A device has shown that it knows these cursors."""
        if self._shown.take(device, cursors):
            self._noted.set()
        self._tell_full(self._shown)

    def note_fetched(self, device: DeviceKey, cursors: Sequence[Cursor]) -> None:
        """A call of a device was answered with these cursors: it knows them, or asks again if that was lost."""
        if len(self._told) >= _MAX_SEEN:
            self._told.clear()
        # Who is told again what it does not show costs no statement each time.
        fresh = self._told.take(device, cursors)
        if self._fetched.take(device, fresh):
            self._noted.set()
        self._tell_full(self._fetched)

    def forget(self) -> None:
        """The database was restored: what was shown and told before may be of what it took back."""
        for newest in (self._shown, self._fetched, self._told):
            newest.clear()

    async def run(self) -> None:
        """Write what is noted, for ever."""
        while True:
            await self._noted.wait()
            self._noted.clear()
            try:
                await self.flush()
                await self._clock.sleep(_SEEN_PAUSE_S)
            except SyncbeatError as error:
                _log.warning("cursors not recorded yet", extra={"reason": error.reason})
                self._noted.set()
                await self._clock.sleep(_SEEN_RETRY_S)

    def _tell_full(self, newest: _Newest) -> None:
        if len(newest) >= _MAX_SEEN and not self._is_full:
            self._is_full = True
            _log.warning(
                "too many cursors wait to be recorded: others are not, and their devices may be woken once more"
            )

    async def flush(self) -> None:
        """Write everything that is noted now."""
        self._is_full = False
        for newest, write in ((self._shown, changes.record_seen), (self._fetched, record_fetched)):
            while newest:
                batch = dict(itertools.islice(newest.items(), _SEEN_BATCH))
                async with self._database.connection() as conn:
                    await write(conn, [(device, cursor) for (device, _), cursor in batch.items()])
                for key, cursor in batch.items():
                    if newest.get(key) is cursor:
                        del newest[key]


class _Newest(dict[tuple[DeviceKey, str], Cursor]):
    """The newest cursor for each device and scope, of at most `_MAX_SEEN`."""

    def take(self, device: DeviceKey, cursors: Sequence[Cursor]) -> list[Cursor]:
        """Take in what is newer; what that was."""
        taken = []
        for cursor in cursors:
            if cursor.sequence is None or not cursor.epoch:
                continue
            key = device, cursor.scope
            known = self.get(key)
            if known is None and len(self) >= _MAX_SEEN:
                continue
            if known is None or known.epoch != cursor.epoch or (known.sequence or 0) < cursor.sequence:
                self[key] = cursor
                taken.append(cursor)
        return taken
