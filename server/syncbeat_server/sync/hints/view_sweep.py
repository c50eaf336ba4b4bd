"""Compares the view cache with the database every 5 s, because change notifications may be lost."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from syncbeat_server.clock import Clock
from syncbeat_server.errors import SyncbeatError
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.sync.hints.view_cache import ViewCache
from syncbeat_server.sync.model import DEFAULT_SWEEP, SweepRule
from syncbeat_server.sync.store import invalidations

_log = logging.getLogger(__name__)

_FULL_CLEANUP_EVERY = 60  # sweeps: five minutes
# As long as a transaction may take, and two sweeps more: heads carry the time at which their transaction began.
_LOOK_BACK_S = 30.0
_TOUCHES_KEPT_S = 120.0


class ViewSweep:
    """Invalidates cached views that the database has newer rows for: so none is outdated for much over 5 s."""

    def __init__(
        self,
        database: Database,
        views: ViewCache,
        clock: Clock,
        app_ids: Callable[[], Sequence[str]],
        rule: SweepRule = DEFAULT_SWEEP,
    ) -> None:
        self._database = database
        self._views = views
        self._clock = clock
        self._app_ids = app_ids
        self._rule = rule
        self._floor: str | None = None
        self._sweeps = 0
        self._cleaned_up_to = "0"

    async def run(self) -> None:
        """Sweep for ever. While the database does not answer, the cache expires by itself."""
        while True:
            try:
                await self.sweep()
            except SyncbeatError as error:
                _log.warning("cannot look at what changed now", extra={"reason": error.reason})
            await self._clock.sleep(self._rule.every_s)

    async def sweep(self) -> None:
        """Invalidate everything that changed since the last sweep."""
        began = self._clock.monotonic()
        most, at_once = self._rule.max_rows, self._rule.heads_per_read
        async with self._database.connection() as conn:
            found = await invalidations.invalidations_since(conn, self._floor, most)
            heads = await invalidations.recent_heads(conn, self._app_ids(), _LOOK_BACK_S, most)
            if len(heads) == most:  # there may be others beyond the limit: compare each cached scope
                cached = self._views.cached_scopes()
                for start in range(0, len(cached), at_once):
                    heads |= await invalidations.current_heads(conn, cached[start : start + at_once])
            # Deleted rows stay in the index until it is vacuumed: they are walked past once in a while, not each time.
            self._sweeps += 1
            since = "0" if self._sweeps % _FULL_CLEANUP_EVERY == 1 else self._cleaned_up_to
            _, self._cleaned_up_to = await invalidations.delete_touches(conn, _TOUCHES_KEPT_S, most, since)
        # A floor above the next one is of another database (a restore): what was touched since it is unknown.
        incomplete = self._floor is None or int(self._floor) > int(found.next_floor)
        incomplete = incomplete or len(found.users) + len(found.scopes) == most
        self._floor = found.next_floor
        if incomplete:
            self._views.invalidate_all()
        for user in found.users:
            self._views.user_changed(*user)
        for scope in found.scopes:
            self._views.scope_changed(*scope)
        self._views.confirm(heads, began)
