"""Records the presence of writers: evidence that a scope is about to change, or has stopped, before any write."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from syncbeat_server.clock import Clock
from syncbeat_server.errors import SyncbeatError
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.sync.model import Activity, ActivityState, DeviceKey, UserKey
from syncbeat_server.sync.store import scopes

_log = logging.getLogger(__name__)

_MAX_PENDING = 10_000
_BATCH = 500
_PAUSE_S = 0.2
_MAX_SCOPES_PER_USER = 20  # of a user who writes more scopes, those that changed last


class WriterPresence:
    """Writes the arrivals and departures of writers in the background; those that a crash loses cost a few polls."""

    def __init__(self, database: Database, clock: Clock, scope_changed: Callable[[str, str], None]) -> None:
        """`scope_changed(app, scope)` is called for each scope whose expected change rate moved."""
        self._database = database
        self._clock = clock
        self._scope_changed = scope_changed
        self._pending_users: dict[UserKey, bool] = {}
        self._pending = asyncio.Event()

    def record(self, device: DeviceKey, activity: Activity) -> None:
        """Record the activity that a device reported, or opened a stream with."""
        user = device.app_id, device.user_id
        if user not in self._pending_users and len(self._pending_users) >= _MAX_PENDING:
            return
        self._pending_users[user] = activity.state is ActivityState.FOREGROUND
        self._pending.set()

    async def run(self) -> None:
        """Write pending records, for ever. Those that cannot be written now are dropped: soon they are outdated."""
        while True:
            await self._pending.wait()
            self._pending.clear()
            try:
                await self.flush()
            except SyncbeatError as error:
                self._pending_users.clear()
                _log.warning("presence not recorded", extra={"reason": error.reason})
            await self._clock.sleep(_PAUSE_S)

    async def flush(self) -> None:
        """Write all pending records now. Raises DependencyDown."""
        while self._pending_users:
            batch = [self._pending_users.popitem() for _ in range(min(_BATCH, len(self._pending_users)))]
            for present in (False, True):
                users = [user for user, is_present in batch if is_present is present]
                if not users:
                    continue
                async with self._database.connection() as conn:
                    changed = await scopes.record_writer_presence(
                        conn, users, present=present, limit=_MAX_SCOPES_PER_USER
                    )
                for scope in changed:
                    self._scope_changed(*scope)
