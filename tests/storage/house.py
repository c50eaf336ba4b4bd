"""The sync feature over one database, and readers of its streams, for tests of feeds."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from syncbeat_server.errors import AccessDenied, InvalidRequest, NotFound, TokenExpired
from syncbeat_server.events.publish import Publish
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.sync.feed.reader import FeedReader
from syncbeat_server.sync.hints.builder import HintBuilder
from syncbeat_server.sync.hints.cursor_recorder import CursorRecorder
from syncbeat_server.sync.hints.recorders import Recorders
from syncbeat_server.sync.hints.view_cache import ViewCache
from syncbeat_server.sync.hints.view_reader import ViewReader
from syncbeat_server.sync.hints.writer_presence import WriterPresence
from syncbeat_server.sync.model import (
    Activity,
    ChangesSent,
    Checkpoint,
    Cursor,
    DeviceKey,
    FeedPage,
    Hint,
    NewChange,
    Poll,
    StreamEvent,
)
from syncbeat_server.sync.policy.arrival_book import ArrivalBook
from syncbeat_server.sync.policy.load_leveling import LoadLeveler, ReturnSpacer
from syncbeat_server.sync.service import SyncService
from syncbeat_server.sync.streams.firehose import Firehose
from syncbeat_server.sync.streams.firehose_stream import FirehoseRequest
from syncbeat_server.sync.streams.head_sweep import HeadSweep
from syncbeat_server.sync.streams.hint_stream import WatchRequest
from syncbeat_server.sync.streams.hint_streams import HintStreams
from syncbeat_server.sync.streams.hub import Hub
from syncbeat_server.sync.streams.stream_context import StreamContext
from syncbeat_server.sync.tuning.hint_recorder import HintRecorder
from tests.fakes import FakeClock, wait_until
from tests.storage.doubles import Refuses
from tests.storage.stage import APP, Notifier, default_tuning, new_publisher

PHONE = DeviceKey(APP, "ann", "phone")
COME_BACK_PER_S = 2.0


@dataclass
class House:
    """The sync feature over one database that can be made to refuse."""

    database: Database
    clock: FakeClock
    hub: Hub = field(default_factory=lambda: Hub(max_per_user=100, max_per_device=100))

    def __post_init__(self) -> None:
        self.refuses = Refuses(self.database)
        reachable = self.refuses.as_database
        self.reader = FeedReader(reachable)
        self.cursors = CursorRecorder(reachable, self.clock)
        self.writers = WriterPresence(reachable, self.clock, self.hub.scope_changed)
        self.pacing = LoadLeveler(ArrivalBook(self.clock.now().timestamp()), lambda: 0.5)
        self.recorder = HintRecorder(default_tuning)
        recorders = Recorders(self.cursors, self.recorder)
        cache = ViewCache(self.clock, lambda: False, 100)  # nothing is kept: `test_views` is about that
        views = ViewReader(reachable, cache)
        hints = HintBuilder(views, recorders, self.pacing, default_tuning, self.hub.is_live, self.clock)
        notifier = Notifier(self.hub.scope_changed)
        self.service = SyncService(reachable, self.reader, hints, self.writers, notifier)
        self.turns = ReturnSpacer()
        context = StreamContext(
            self.hub,
            self.reader,
            self.clock,
            default_tuning,
            lambda: self.turns.next_delay_s(self.clock.monotonic(), COME_BACK_PER_S),
        )
        self.streams = HintStreams(context, recorders, self.writers, lambda device: None)
        self.firehose = Firehose(context, reachable, lambda: True)
        self.sweep = HeadSweep(reachable, self.hub, self.clock, lambda: True)
        self.publisher = new_publisher(self.database, self.clock, notifier)

    async def publish(self, *keys: str, scope: str = "couple", deleted: bool = False) -> Cursor:
        changes = tuple(NewChange(scope, key, "" if deleted else "{}", deleted) for key in keys)
        digest = hashlib.sha256(repr(changes).encode()).digest()
        published = await self.publisher.publish(Publish(APP, "service:test", changes, None, None, "", digest))
        return published.heads[0]

    async def page(self, cursor: Cursor, limit: int = 10, user_id: str | None = None) -> FeedPage:
        (found,) = await self.reader.pages(APP, user_id, [cursor], limit)
        assert found is not None
        return found

    async def hint(self, *cursors: Cursor, **fields: Any) -> Hint:
        poll = Poll(PHONE, cursors, **fields)
        return self.service.try_hint(poll) or await self.service.hint(poll, is_user=True)


def keys(page: FeedPage | ChangesSent) -> list[str]:
    return [change.key for change in page.changes]


class Reader:
    """Reads a stream in the background."""

    def __init__(self) -> None:
        self.events: list[StreamEvent] = []
        self.error: Exception | None = None
        self.ended = False

    async def read(self, events: AsyncIterator[StreamEvent]) -> None:
        try:
            async for event in events:
                self.events.append(event)
        except (AccessDenied, InvalidRequest, NotFound, TokenExpired) as error:
            self.error = error
        self.ended = True

    def changes(self) -> list[tuple[str, int]]:
        return [(c.key, c.sequence) for e in self.events if isinstance(e, ChangesSent) for c in e.changes]

    def places(self) -> list[tuple[str, int]]:
        """(scope, sequence) of the changes."""
        return [(c.scope, c.sequence) for e in self.events if isinstance(e, ChangesSent) for c in e.changes]

    @property
    def token(self) -> str:
        """That of the last checkpoint."""
        return [event.token for event in self.events if isinstance(event, Checkpoint)][-1]

    def count(self, kind: type[StreamEvent]) -> int:
        return sum(isinstance(event, kind) for event in self.events)


async def let_in() -> None:
    """The caller of a stream is as good as ever."""


@asynccontextmanager
async def stream(house: House, *cursors: Cursor, **fields: Any) -> AsyncIterator[Reader]:
    """An open stream of ann's phone; it has said its first checkpoint."""
    given = {"activity": Activity(), "heartbeat_s": 30.0, "expires_at": None, "recheck": let_in, **fields}
    async with _reading(house.streams.watch(WatchRequest(PHONE, "ann", cursors, **given))) as reader:
        yield reader


@asynccontextmanager
async def whole(house: House, token: str | None = "", *cursors: Cursor, **fields: Any) -> AsyncIterator[Reader]:
    """An open stream of the whole app, from a token on; it has said its first checkpoint."""
    given = {"activity": Activity(), "heartbeat_s": 30.0, "expires_at": None, "recheck": let_in, **fields}
    async with _reading(house.firehose.watch(FirehoseRequest(APP, token, cursors, **given))) as reader:
        yield reader


@asynccontextmanager
async def _reading(events: AsyncGenerator[StreamEvent, None]) -> AsyncIterator[Reader]:
    reader = Reader()
    reading = asyncio.ensure_future(reader.read(events))
    await wait_until(lambda: reader.ended or reader.count(Checkpoint))
    try:
        yield reader
    finally:
        reading.cancel()
        await asyncio.wait([reading])
        await events.aclose()


async def tell(house: House) -> None:
    """Five seconds pass: the streams say where they are, if there was news."""
    await house.clock.advance(5)
    house.hub.invalidate_all()


async def came(reader: Reader, *places: tuple[str, int]) -> None:
    """Return when these have come, and nothing else; in this order."""
    await wait_until(lambda: len(reader.places()) >= len(places), what=f"{reader.places()} of {places}")
    assert reader.places() == list(places)


async def token_of_now(house: House) -> str:
    """Where a stream of the whole app begins that begins now."""
    async with whole(house) as reader:
        return reader.token


async def publish_to(house: House, scopes: Sequence[str], key: str = "k", patch: str = "{}") -> None:
    """One change in each scope."""
    for start in range(0, len(scopes), 1_000):
        changes = tuple(NewChange(scope, key, patch) for scope in scopes[start : start + 1_000])
        await house.publisher.publish(Publish(APP, "service:test", changes, None, None, "", b""))
