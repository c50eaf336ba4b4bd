"""Kept views on a database, and a reader of them that is watched."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

from syncbeat_server.storage.postgres.database import Connection, Database
from syncbeat_server.sync.feed.reader import FeedReader
from syncbeat_server.sync.hints.builder import Hints
from syncbeat_server.sync.hints.cursor_recorder import SeenRecorder
from syncbeat_server.sync.hints.view_cache import Views
from syncbeat_server.sync.model import Activity, ActivityState, Cursor, DeviceKey, Poll
from syncbeat_server.sync.policy.load_leveling import Book, Pacing
from syncbeat_server.sync.service import SyncService
from syncbeat_server.sync.store.changes import DeviceView
from syncbeat_server.sync.streams.head_sweep import ViewSweep
from syncbeat_server.sync.tuning.hint_recorder import Recorder
from tests.support.fake_clock import FakeClock
from tests.support.seed import APP, default_tuning

PHONE, TABLET = DeviceKey(APP, "ann", "phone"), DeviceKey(APP, "ann", "tablet")
BOBS = DeviceKey(APP, "bob", "phone")


AWAY = Activity(ActivityState.BACKGROUND, idle_s=9.0)


class Watched:
    """A Database that counts how often it is asked, fails when told so, and can hold back what it has answered."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.asked = 0
        self.error: Exception | None = None
        self.holding = 0
        self.free = asyncio.Event()
        self.free.set()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        self.asked += 1
        if self.error is not None:
            raise self.error
        async with self._database.connection() as conn:
            yield conn
        self.holding += 1
        await self.free.wait()
        self.holding -= 1


class House:
    """The kept views of one process, and the database behind them."""

    def __init__(self, database: Database, clock: FakeClock, size: int = 100) -> None:
        self.database = database
        self.clock = clock
        self.listening = True
        self.watched = Watched(database)
        reachable = cast(Database, self.watched)
        self.views = Views(reachable, clock, lambda: self.listening, size)
        self.sweep = ViewSweep(database, self.views, clock, [APP])
        self.seen = SeenRecorder(database, clock)
        pacing = Pacing(Book(clock.now().timestamp()), lambda: 0.5)
        recorder = Recorder(default_tuning)
        hints = Hints(self.views, self.seen, recorder, pacing, default_tuning, lambda device: False, clock)
        self.service = SyncService(
            reachable, FeedReader(database), hints, lambda app_id, scope: None, lambda device, activity: None
        )

    async def asked_for(self, device: DeviceKey = PHONE) -> tuple[int, DeviceView | None]:
        """How often the database is asked for a view, and the view."""
        before = self.watched.asked
        view = self.views.cached(device) or await self.views.read(device)
        return self.watched.asked - before, view

    async def heads(self, device: DeviceKey = PHONE) -> dict[str, int]:
        _, view = await self.asked_for(device)
        assert view is not None
        return {name: state.head for name, state in view.scopes.items()}

    async def move_head(self, scope: str = "couple") -> None:
        """Publish, and tell nobody."""
        async with self.database.connection() as conn:
            await conn.execute("UPDATE scopes SET head = head + 1, changed_at = syncbeat_now() WHERE scope = $1", scope)

    async def hint(self, *cursors: Cursor) -> bool:
        poll = Poll(PHONE, cursors)
        hint = self.service.hint_at_once(poll) or await self.service.hint(poll, is_user=True)
        return hint.changed
