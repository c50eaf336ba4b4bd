"""Streams everything that changes in an app, from a token on, at a cost that grows with the number of changes.

The hub wakes the stream; unasked it looks every 5 s. It reads what was committed since the snapshot at which its last
pass ended (`sync/store/firehose_pages.py`): no clock is involved, and nobody waits for a transaction that stays open.
A stream holds one page of what it reads.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice

from syncbeat_server.errors import DependencyDown, NotFound, Overloaded
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.sync import policy
from syncbeat_server.sync.content.firehose_token import FeedPosition, encode
from syncbeat_server.sync.feed.resumable_cursors import can_resume
from syncbeat_server.sync.model import (
    Activity,
    Change,
    ChangesSent,
    Checkpoint,
    Cursor,
    Hint,
    Reset,
    ResetAll,
    ScopeState,
    StreamEvent,
)
from syncbeat_server.sync.policy import Situation
from syncbeat_server.sync.store import firehose_pages
from syncbeat_server.sync.streams.drain_and_lifetime import Lifetime
from syncbeat_server.sync.streams.stream_context import StreamContext

_LOOK_EVERY_WHEN_DEAF_S = 1.0
_PAUSE_S = 0.01  # between two passes: what is published meanwhile comes together
_EVENT_CHANGES = 50  # changes of one event, so that others get their turn of the event loop in between
MAX_CHECKPOINT_CURSORS = 4_000
"""Cursors of one checkpoint, at up to 200 octets each: less than 1 MiB, so that it fits every client."""


@dataclass(frozen=True)
class FirehoseRequest:
    """Asks for the stream of a whole app from `token` on.

    An empty token begins now, and in some scopes at `cursors`. No token (None): the caller knows cursors only, and
    gets those. See `Lifetime` for `recheck`.
    """

    app_id: str
    token: str | None
    cursors: tuple[Cursor, ...]
    activity: Activity
    heartbeat_s: float
    expires_at: datetime | None
    recheck: Callable[[], Awaitable[None]]


class FirehoseStream:
    """Produces the events of one stream of a whole app.

    `_cursors` holds its place in the scopes that it began in by cursor, and where checkpoints carry cursors, in all
    scopes that it met. `_pruned` is the mark of removed tombstones at the start of the pass, as in `FeedPosition`.
    """

    def __init__(
        self,
        context: StreamContext,
        database: Database,
        request: FirehoseRequest,
        lifetime: Lifetime,
        position: FeedPosition,
    ) -> None:
        self._context = context
        self._rule = context.rule
        self._database = database
        self._request = request
        self._lifetime = lifetime
        self._position = position
        self._cursors: dict[str, Cursor] = {}
        self._in_order = False
        self._pruned = 0
        self._is_caught_up = False
        self._is_over = False

    async def open(self) -> AsyncIterator[StreamEvent]:
        """Yield the hint, and the changes since the given cursors. The first pass finds some again and skips them.

        Raises:
            NotFound: a cursor names a scope that does not exist.
        """
        app_id = self._request.app_id
        yield self._hint()
        named = {cursor.scope: cursor for cursor in self._request.cursors}
        states = await self._context.reader.heads(app_id, None, list(named))
        for cursor, state in zip(named.values(), states, strict=True):
            if state is None:
                raise NotFound("there is no such scope", scope=cursor.scope)
            if cursor.sequence is not None:
                async for event in self._catch_up(cursor, state):
                    yield event

    async def follow(self, listening: Callable[[], bool]) -> AsyncIterator[StreamEvent]:
        """Yield changes and checkpoints until the stream ends with a drain.

        Raises:
            TokenExpired: the caller's access token expired.
            TokenRevoked: it was revoked.
        """
        request, lifetime, clock = self._request, self._lifetime, self._context.clock
        checkpoint_at = clock.monotonic()
        while not (lifetime.is_over or self._is_over):
            has_sent = False
            try:
                await lifetime.check()
                async for event in self._next_page():
                    has_sent = True
                    yield event
            except (DependencyDown, Overloaded):
                # The stream outlives a database that is away or overloaded: it keeps its position.
                await lifetime.subscription.wait(self._rule.retry_s)
                continue
            if has_sent and request.token is None:
                checkpoint_at = min(checkpoint_at, clock.monotonic() + self._rule.cursors_every_s)
            if (has_sent and request.token is not None) or clock.monotonic() >= checkpoint_at:
                for checkpoint in self._checkpoints():
                    yield checkpoint
                checkpoint_at = clock.monotonic() + request.heartbeat_s
            if self._is_caught_up:
                look_s = self._rule.look_every_s if listening() else _LOOK_EVERY_WHEN_DEAF_S
                await asyncio.sleep(_PAUSE_S)
                await lifetime.subscription.wait(min(look_s, lifetime.wait_limit_s(checkpoint_at)))
        for checkpoint in self._checkpoints():
            yield checkpoint
        yield lifetime.drain()

    async def _catch_up(self, cursor: Cursor, state: ScopeState) -> AsyncIterator[StreamEvent]:
        """Yield the changes of one scope since a cursor, a page at a time, or a reset if it cannot be resumed."""
        scope = cursor.scope
        self._cursors[scope] = state.cursor
        if not can_resume(cursor, state):
            yield Reset(state.cursor, self._context.refetch_delay_s())
            return
        more = True
        while more:
            (page,) = await self._context.reader.pages(self._request.app_id, None, [cursor], self._rule.page_size)
            if page is None:
                raise NotFound("there is no such scope", scope=scope)
            if page.reset:
                self._cursors[scope] = page.state.cursor
                yield Reset(page.state.cursor, self._context.refetch_delay_s())
                return
            for event in _events(page.changes):
                yield event
            cursor = self._cursors[scope] = page.next
            more = page.more

    async def _next_page(self) -> AsyncIterator[StreamEvent]:
        """Yield the events of the next page, which is held no longer than it takes to send them."""
        app_id, position = self._request.app_id, self._position
        async with self._database.connection() as conn:
            page = await firehose_pages.next_page(conn, app_id, position, in_order=self._in_order)
        if not _can_continue(position, page.feed):
            if self._request.token is None:
                self._is_over = True  # cursors are checked one by one when the client comes back with them
                return
            # From the start: a client that drops all it keeps, and goes on reading, gets all there is.
            self._position = FeedPosition(page.feed.name, None, pruned=page.feed.pruned)
            self._in_order, self._is_caught_up = False, False
            self._cursors.clear()
            yield ResetAll(encode(app_id, self._position), self._context.refetch_delay_s())
            return
        for event in _events(self._unsent(page.changes)):
            yield event
        if position.until is None:
            self._pruned = page.feed.pruned
        self._is_caught_up = page.after is None
        if page.after is None:
            pruned = max(self._pruned, position.pruned)
            self._position, self._in_order = FeedPosition(position.feed, page.until, pruned=pruned), False
        else:
            self._position = position._replace(until=page.until, after=page.after)
            self._in_order = page.in_order

    def _unsent(self, changes: Sequence[Change]) -> list[Change]:
        """Return the changes that were not sent while catching up by cursor, and move the cursors past them."""
        cursors = self._cursors
        unsent = []
        for change in changes:
            cursor = cursors.get(change.scope)
            if cursor is not None and cursor.epoch == change.epoch and change.sequence <= (cursor.sequence or 0):
                continue
            unsent.append(change)
            if cursor is not None or self._request.token is None:
                cursors[change.scope] = Cursor(change.scope, change.epoch, change.sequence)
        for scope in list(islice(cursors, max(0, len(cursors) - self._rule.max_cursors))):
            del cursors[scope]
        return unsent

    def _checkpoints(self) -> Iterator[Checkpoint]:
        """Yield the position as one checkpoint with a token, or as cursors, in several where they are very many."""
        hint, remaining_s = self._hint(), self._lifetime.token_remaining_s
        if self._request.token is not None:
            yield Checkpoint((), hint, remaining_s, encode(self._request.app_id, self._position))
            return
        cursors = tuple(self._cursors.values())
        for start in range(0, max(1, len(cursors)), MAX_CHECKPOINT_CURSORS):
            yield Checkpoint(cursors[start : start + MAX_CHECKPOINT_CURSORS], hint, remaining_s)

    def _hint(self) -> Hint:
        # Nobody polls a whole app: the hint is that of a device without scopes.
        situation, app_id = Situation([], self._request.activity), self._request.app_id
        return policy.decide(
            situation, self._context.tuning(app_id), self._context.clock.now().timestamp(), changed=False
        )


def _can_continue(position: FeedPosition, feed: firehose_pages.FeedState) -> bool:
    """Return True if everything after a position can still be sent.

    It is of this feed, not of a future that a restore undid, and no tombstone that it lacks was removed.
    """
    newest = position.until or position.since
    if position.feed != feed.name or (newest is not None and newest.xmax > feed.now.xmax):
        return False
    # A list from the start that has sent nothing yet lacks no deletion of before it began.
    floor = position.since or position.until
    return floor is None or feed.pruned < floor.xmin or feed.pruned == position.pruned


def _events(changes: Sequence[Change]) -> list[ChangesSent]:
    return [
        ChangesSent(tuple(changes[start : start + _EVENT_CHANGES])) for start in range(0, len(changes), _EVENT_CHANGES)
    ]
