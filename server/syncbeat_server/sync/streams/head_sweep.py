"""Looks unasked at heads that moved, at who joined a scope or left it: wake-ups are fast, and may be lost."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from syncbeat_server.clock import Clock
from syncbeat_server.errors import SyncbeatError
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.storage.postgres.restore_detection import lineage
from syncbeat_server.sync.hints.view_cache import Views
from syncbeat_server.sync.model import ScopeKey
from syncbeat_server.sync.store import changes, invalidations
from syncbeat_server.sync.streams.hub import Hub

_log = logging.getLogger(__name__)

_EVERY_S = 5.0
_EVERY_WHEN_DEAF_S = 1.0
_CHUNK = 5_000
_MAX_CHANGED = 10_000
_FROM_FIRST_EVERY = 60  # sweeps: five minutes
# As long as a transaction may take, and two sweeps more: heads carry the moment that theirs began at.
_LOOK_BACK_S = 30.0
_TOUCHES_KEPT_S = 120.0


class HeadSweep:
    """Tells the hub of heads that moved; more often while `listening()` says that no wake-up can arrive."""

    def __init__(self, database: Database, hub: Hub, clock: Clock, listening: Callable[[], bool]) -> None:
        self._database = database
        self._hub = hub
        self._clock = clock
        self._listening = listening
        self._heads: dict[ScopeKey, tuple[str, int]] = {}

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
        heads: dict[ScopeKey, tuple[str, int]] = {}
        for start in range(0, len(followed), _CHUNK):
            async with self._database.connection() as conn:
                heads |= await invalidations.heads_of(conn, followed[start : start + _CHUNK])
        for key, head in heads.items():
            if self._heads.get(key) != head:  # forwards, backwards, or in another epoch
                self._hub.scope_changed(*key)
        self._heads = heads
        if len(self._hub):
            async with self._database.connection() as conn:
                joiners = await changes.recent_joiners(conn, 3 * pause_s, _MAX_CHANGED)
            if len(joiners) == _MAX_CHANGED:  # and perhaps others: every stream looks for itself
                self._hub.look_everywhere()
            for joiner in joiners:
                self._hub.members_changed(*joiner)


class LineageSweep:
    """Notices that the database was restored: whatever was known of it may be so no longer, and nothing else tells."""

    def __init__(self, database: Database, clock: Clock, restored: Callable[[], None]) -> None:
        """`restored` is told; a restart of PostgreSQL counts, since a restore may lie behind it."""
        self._database = database
        self._clock = clock
        self._restored = restored
        self._known: str | None = None

    async def run(self) -> None:
        """Look for ever; while the database does not answer, each second."""
        while True:
            pause = _EVERY_S
            try:
                await self.sweep()
            except SyncbeatError as error:
                _log.warning("cannot look at the database now", extra={"reason": error.reason})
                pause = _EVERY_WHEN_DEAF_S
            await self._clock.sleep(pause)

    async def sweep(self) -> None:
        """Look once whether it is the database that it was."""
        async with self._database.connection() as conn:
            found = await lineage(conn)
        if found != self._known:
            if self._known is not None:
                _log.warning("PostgreSQL was restarted or restored; everything is looked at anew")
                self._restored()
            self._known = found


class ViewSweep:
    """Holds the kept views against the database, since wake-ups may be lost: so none is wrong for much over 5 s."""

    def __init__(self, database: Database, views: Views, clock: Clock, app_ids: Sequence[str]) -> None:
        self._database = database
        self._views = views
        self._clock = clock
        self._app_ids = app_ids
        self._floor: str | None = None
        self._sweeps = 0
        self._forgotten = "0"

    async def run(self) -> None:
        """Sweep for ever. When it cannot, the views forget by themselves."""
        while True:
            try:
                await self.sweep()
            except SyncbeatError as error:
                _log.warning("cannot look at what changed now", extra={"reason": error.reason})
            await self._clock.sleep(_EVERY_S)

    async def sweep(self) -> None:
        """Look once at what changed since the last look."""
        began = self._clock.monotonic()
        async with self._database.connection() as conn:
            touched = await invalidations.touched(conn, self._floor, _MAX_CHANGED)
            heads = await invalidations.recent_heads(conn, self._app_ids, _LOOK_BACK_S, _MAX_CHANGED)
            if len(heads) == _MAX_CHANGED:  # more change than are kept, or nearly so: look at those
                kept = self._views.scopes()
                for start in range(0, len(kept), _CHUNK):
                    heads |= await invalidations.heads_of(conn, kept[start : start + _CHUNK])
            # Old ones stay in the index until it is vacuumed: they are walked past once in a while, not each time.
            self._sweeps += 1
            since = "0" if self._sweeps % _FROM_FIRST_EVERY == 1 else self._forgotten
            _, self._forgotten = await invalidations.forget_touches(conn, _TOUCHES_KEPT_S, _MAX_CHANGED, since)
        # A floor that is not reached yet is of a database that was another one: what was touched since is not known.
        unknown = self._floor is None or int(self._floor) > int(touched.next_floor)
        unknown = unknown or len(touched.users) + len(touched.scopes) == _MAX_CHANGED
        self._floor = touched.next_floor
        if unknown:
            self._views.forget_all()
        for user in touched.users:
            self._views.user_changed(*user)
        for scope in touched.scopes:
            self._views.scope_changed(*scope)
        self._views.looked_at(heads, began)
