"""Reads streams of the sync feature in the background, and compares what came with what was published."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from syncbeat_server.errors import AccessDenied, InvalidRequest, NotFound, TokenExpired
from syncbeat_server.events.publish import Publish
from syncbeat_server.sync.model import (
    Activity,
    ChangesSent,
    Checkpoint,
    Cursor,
    FeedPage,
    NewChange,
    StreamEvent,
)
from syncbeat_server.sync.streams.firehose_stream import FirehoseRequest
from syncbeat_server.sync.streams.hint_stream import WatchRequest
from tests.support.build import APP, PHONE, SyncFeature
from tests.support.fake_clock import wait_until


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
async def stream(sync: SyncFeature, *cursors: Cursor, **fields: Any) -> AsyncIterator[Reader]:
    """An open stream of ann's phone; it has said its first checkpoint."""
    given = {"activity": Activity(), "heartbeat_s": 30.0, "expires_at": None, "recheck": let_in, **fields}
    async with reading(sync.streams.watch(WatchRequest(PHONE, "ann", cursors, **given))) as reader:
        yield reader


@asynccontextmanager
async def whole(sync: SyncFeature, token: str | None = "", *cursors: Cursor, **fields: Any) -> AsyncIterator[Reader]:
    """An open stream of the whole app, from a token on; it has said its first checkpoint."""
    given = {"activity": Activity(), "heartbeat_s": 30.0, "expires_at": None, "recheck": let_in, **fields}
    async with reading(sync.firehose.watch(FirehoseRequest(APP, token, cursors, **given))) as reader:
        yield reader


@asynccontextmanager
async def reading(events: AsyncGenerator[StreamEvent, None]) -> AsyncIterator[Reader]:
    """Read events in the background, from a first checkpoint on."""
    reader = Reader()
    task = asyncio.ensure_future(reader.read(events))
    await wait_until(lambda: reader.ended or reader.count(Checkpoint))
    try:
        yield reader
    finally:
        task.cancel()
        await asyncio.wait([task])
        await events.aclose()


async def tell(sync: SyncFeature) -> None:
    """Five seconds pass: the streams say where they are, if there was news."""
    await sync.clock.advance(5)
    sync.hub.invalidate_all()


async def came(reader: Reader, *places: tuple[str, int]) -> None:
    """Return when these have come, and nothing else; in this order."""
    await wait_until(lambda: len(reader.places()) >= len(places), what=f"{reader.places()} of {places}")
    assert reader.places() == list(places)


async def token_of_now(sync: SyncFeature) -> str:
    """Return where a stream of the whole app begins that begins now."""
    async with whole(sync) as reader:
        return reader.token


async def publish_to(sync: SyncFeature, scopes: Sequence[str], key: str = "k", patch: str = "{}") -> None:
    """One change in each scope."""
    for start in range(0, len(scopes), 1_000):
        changes = tuple(NewChange(scope, key, patch) for scope in scopes[start : start + 1_000])
        await sync.publisher.publish(Publish(APP, "service:test", changes, None, None, "", b""))
