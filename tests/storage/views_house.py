"""Kept views on a database, and a reader of them that is watched."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

from syncbeat_server.storage.postgres.database import Connection, Database
from syncbeat_server.sync.feed.reader import FeedReader
from syncbeat_server.sync.hints.builder import HintBuilder
from syncbeat_server.sync.hints.cursor_recorder import CursorRecorder
from syncbeat_server.sync.hints.recorders import Recorders
from syncbeat_server.sync.hints.view_cache import ViewCache
from syncbeat_server.sync.hints.view_reader import ViewReader
from syncbeat_server.sync.hints.view_sweep import ViewSweep
from syncbeat_server.sync.hints.writer_presence import WriterPresence
from syncbeat_server.sync.model import Activity, ActivityState, Cursor, DeviceKey, Poll
from syncbeat_server.sync.policy.arrival_book import ArrivalBook
from syncbeat_server.sync.policy.load_leveling import LoadLeveler
from syncbeat_server.sync.service import SyncService
from syncbeat_server.sync.store.device_views import DeviceView
from syncbeat_server.sync.tuning.hint_recorder import HintRecorder
from tests.fakes import FakeClock
from tests.storage.stage import APP, Notifier, default_tuning

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
        self.views = ViewCache(clock, lambda: self.listening, size)
        self.view_reader = ViewReader(reachable, self.views)
        self.sweep = ViewSweep(database, self.views, clock, [APP])
        self.cursors = CursorRecorder(database, clock)
        pacing = LoadLeveler(ArrivalBook(clock.now().timestamp()), lambda: 0.5)
        recorders = Recorders(self.cursors, HintRecorder(default_tuning))
        hints = HintBuilder(self.view_reader, recorders, pacing, default_tuning, lambda device: False, clock)
        writers = WriterPresence(database, clock, lambda app_id, scope: None)
        self.service = SyncService(reachable, FeedReader(database), hints, writers, Notifier())

    async def asked_for(self, device: DeviceKey = PHONE) -> tuple[int, DeviceView | None]:
        """How often the database is asked for a view, and the view."""
        before = self.watched.asked
        view = self.views.get(device) or await self.view_reader.read(device)
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
        hint = self.service.try_hint(poll) or await self.service.hint(poll, is_user=True)
        return hint.changed
