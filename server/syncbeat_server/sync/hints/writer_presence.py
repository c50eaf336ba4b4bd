"""Who is there to write: evidence that a scope is about to change, or is done changing, before anything is written."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from syncbeat_server.clock import Clock
from syncbeat_server.errors import SyncbeatError
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.sync.model import Activity, ActivityState, DeviceKey
from syncbeat_server.sync.store import scopes

_log = logging.getLogger(__name__)

_MAX_WAITING = 10_000
_BATCH = 500
_PAUSE_S = 0.2
_SCOPES_EACH = 20  # of somebody who writes more, those are told of that changed last


class WriterPresence:
    """Writes down that writers came or left, off the callers' path. What a crash loses of it costs a few polls."""

    def __init__(self, database: Database, clock: Clock, scope_changed: Callable[[str, str], None]) -> None:
        """`scope_changed` is told of each scope whose outlook is another one now."""
        self._database = database
        self._clock = clock
        self._scope_changed = scope_changed
        self._newest: dict[tuple[str, str], bool] = {}
        self._noted = asyncio.Event()

    def note(self, device: DeviceKey, activity: Activity) -> None:
        """A device has reported its activity, or opened a stream."""
        user = device.app_id, device.user_id
        if user not in self._newest and len(self._newest) >= _MAX_WAITING:
            return
        self._newest[user] = activity.state is ActivityState.FOREGROUND
        self._noted.set()

    async def run(self) -> None:
        """Write what is noted, for ever. What cannot be written now is forgotten: it is worth something only soon."""
        while True:
            await self._noted.wait()
            self._noted.clear()
            try:
                await self.flush()
            except SyncbeatError as error:
                self._newest.clear()
                _log.warning("presence not recorded", extra={"reason": error.reason})
            await self._clock.sleep(_PAUSE_S)

    async def flush(self) -> None:
        """Write everything that is noted now."""
        while self._newest:
            batch = [self._newest.popitem() for _ in range(min(_BATCH, len(self._newest)))]
            for present in (False, True):
                users = [user for user, came in batch if came is present]
                if not users:
                    continue
                async with self._database.connection() as conn:
                    told = await scopes.note_presence(conn, users, present=present, limit=_SCOPES_EACH)
                for scope in told:
                    self._scope_changed(*scope)
