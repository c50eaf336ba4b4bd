"""Reads the heads of followed scopes and recent joins every 5 s, because wake-ups are fast but may be lost."""

from __future__ import annotations

import logging
from collections.abc import Callable

from syncbeat_server.clock import Clock
from syncbeat_server.errors import SyncbeatError
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.sync.model import DEFAULT_SWEEP, ScopeKey, SweepRule
from syncbeat_server.sync.store import invalidations, member_scopes
from syncbeat_server.sync.streams.hub import Hub

_log = logging.getLogger(__name__)

_EVERY_WHEN_DEAF_S = 1.0


class HeadSweep:
    """Notifies the hub of heads that moved, and sweeps more often while `listening()` says no wake-up can arrive."""

    def __init__(
        self,
        database: Database,
        hub: Hub,
        clock: Clock,
        listening: Callable[[], bool],
        rule: SweepRule = DEFAULT_SWEEP,
    ) -> None:
        self._database = database
        self._hub = hub
        self._clock = clock
        self._listening = listening
        self._rule = rule
        self._heads: dict[ScopeKey, tuple[str, int]] = {}

    async def run(self) -> None:
        """Sweep for ever."""
        while True:
            pause = self._rule.every_s if self._listening() else _EVERY_WHEN_DEAF_S
            await self._clock.sleep(pause)
            try:
                await self.sweep(pause)
            except SyncbeatError as error:
                _log.warning("cannot look at heads now", extra={"reason": error.reason})

    async def sweep(self, pause_s: float) -> None:
        """Compare once the scopes that streams follow; `pause_s` is about the time since the last sweep."""
        followed, at_once = self._hub.followed_scopes(), self._rule.heads_per_read
        heads: dict[ScopeKey, tuple[str, int]] = {}
        for start in range(0, len(followed), at_once):
            async with self._database.connection() as conn:
                heads |= await invalidations.current_heads(conn, followed[start : start + at_once])
        for key, head in heads.items():
            if self._heads.get(key) != head:  # forwards, backwards, or in another epoch
                self._hub.scope_changed(*key, head)
        self._heads = heads
        if len(self._hub):
            async with self._database.connection() as conn:
                joiners = await member_scopes.recent_joiners(conn, 3 * pause_s, self._rule.max_rows)
            if len(joiners) == self._rule.max_rows:  # there may be others beyond the limit
                self._hub.invalidate_all()
            for joiner in joiners:
                self._hub.members_changed(*joiner)
