"""The sync feature over one database, and readers of its streams, for tests of feeds."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from syncbeat_server.errors import AccessDenied, InvalidRequest, NotFound, TokenExpired
from syncbeat_server.events.publish import Publish, Publisher
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.sync.feed.reader import FeedReader
from syncbeat_server.sync.hints.builder import Hints
from syncbeat_server.sync.hints.cursor_recorder import SeenRecorder
from syncbeat_server.sync.hints.view_cache import Views
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
from syncbeat_server.sync.policy.load_leveling import Book, Pacing, Turns
from syncbeat_server.sync.service import SyncService
from syncbeat_server.sync.streams.firehose import Firehose, FirehoseRequest
from syncbeat_server.sync.streams.head_sweep import HeadSweep
from syncbeat_server.sync.streams.hub import Hub
from syncbeat_server.sync.streams.watch import HintStreams, WatchRequest
from syncbeat_server.sync.tuning.hint_recorder import Recorder
from tests.support.doubles import Refuses
from tests.support.fake_clock import FakeClock, wait_until
from tests.support.seed import APP, default_tuning

PHONE = DeviceKey(APP, "ann", "phone")
COME_BACK_PER_S = 2.0


@dataclass
class House:
    """The sync feature over one database that can be made to refuse."""

    database: Database
    clock: FakeClock
    hub: Hub = field(default_factory=lambda: Hub(most_of_user=100, most_of_device=100))

    def __post_init__(self) -> None:
        self.refuses = Refuses(self.database)
        reachable = self.refuses.as_database
        self.reader = FeedReader(reachable)
        self.seen = SeenRecorder(reachable, self.clock)
        self.writers = WriterPresence(reachable, self.clock, self.hub.scope_changed)
        self.pacing = Pacing(Book(self.clock.now().timestamp()), lambda: 0.5)
        self.recorder = Recorder(default_tuning)
        views = Views(reachable, self.clock, lambda: False, 100)  # nothing is kept: `test_views` is about that
        hints = Hints(views, self.seen, self.recorder, self.pacing, default_tuning, self.hub.is_live, self.clock)
        self.service = SyncService(reachable, self.reader, hints, self.hub.scope_changed, self.writers.note)
        self.turns = Turns()
        self.streams = HintStreams(
            self.hub,
            self.reader,
            self.seen,
            self.clock,
            lambda device: None,
            default_tuning,
            self.writers.note,
            lambda: self.turns.next(self.clock.monotonic(), COME_BACK_PER_S),
            self.recorder,
        )
        self.firehose = Firehose(
            self.hub,
            reachable,
            self.reader,
            self.clock,
            default_tuning,
            lambda: True,
            lambda: self.turns.next(self.clock.monotonic(), COME_BACK_PER_S),
        )
        self.sweep = HeadSweep(reachable, self.hub, self.clock, lambda: True)
        self.publisher = Publisher(self.database, self.clock, default_tuning, self.hub.scope_changed, lambda: None)

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
        return self.service.hint_at_once(poll) or await self.service.hint(poll, is_user=True)


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
    house.hub.look_everywhere()


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
