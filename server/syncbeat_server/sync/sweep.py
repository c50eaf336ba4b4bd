"""Looks unasked at the heads of followed scopes and at who joined one: wake-ups are fast, and may be lost."""

from __future__ import annotations

import logging
from collections.abc import Callable

from syncbeat_server.clock import Clock
from syncbeat_server.errors import SyncbeatError
from syncbeat_server.storage.postgres import Database
from syncbeat_server.sync import scopes, store
from syncbeat_server.sync.hub import Hub, ScopeKey

_log = logging.getLogger(__name__)

_EVERY_S = 5.0
_EVERY_WHEN_DEAF_S = 1.0
_CHUNK = 5_000
_MAX_CHANGED = 10_000


class HeadSweep:
    """Tells the hub of heads that moved; more often while `listening()` says that no wake-up can arrive."""

    def __init__(self, database: Database, hub: Hub, clock: Clock, listening: Callable[[], bool]) -> None:
        self._database = database
        self._hub = hub
        self._clock = clock
        self._listening = listening
        self._heads: dict[ScopeKey, int] = {}

    async def run(self) -> None:
        """Sweep for ever."""
        while True:
            pause = _EVERY_S if self._listening() else _EVERY_WHEN_DEAF_S
            await self._clock.sleep(pause)
            try:
                await self.sweep(pause)
            except SyncbeatError as error:
                _log.warning("cannot look at heads now", extra={"reason": error.reason})

    async def sweep(self, pause_s: float) -> None:
        """Look once at what some stream follows; `pause_s` is about how long ago the last look was."""
        followed = self._hub.followed()
        heads: dict[ScopeKey, int] = {}
        for start in range(0, len(followed), _CHUNK):
            async with self._database.connection() as conn:
                heads |= await scopes.current_heads(conn, followed[start : start + _CHUNK])
        for key, head in heads.items():
            if self._heads.get(key) != head:
                self._hub.scope_changed(*key)
        self._heads = heads
        if len(self._hub):
            async with self._database.connection() as conn:
                joiners = await store.recent_joiners(conn, 3 * pause_s, _MAX_CHANGED)
            for joiner in joiners:
                self._hub.members_changed(*joiner)
        apps = self._hub.apps_followed_whole()
        if apps:
            async with self._database.connection() as conn:
                changed = await scopes.changed_scopes(conn, apps, 3 * pause_s, _MAX_CHANGED)
            for key in changed:
                self._hub.scope_changed(*key)
