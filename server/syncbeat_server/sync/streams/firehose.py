"""Streams of a whole app: everything that changes, from a token on, whose cost grows with what changed.

The hub says that there is news; by itself a stream looks every 5 s. What is new is what was committed since the
snapshot at which the last round ended (`sync/store/firehose_pages.py`): nobody's clock is asked, and nobody waits for a
transaction that stays open. Of what it reads a stream holds one page.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice

from syncbeat_server.clock import Clock
from syncbeat_server.errors import DependencyDown, FieldViolation, InvalidRequest, NotFound
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.sync import policy
from syncbeat_server.sync.content.firehose_token import NotAToken, Place, decode, encode
from syncbeat_server.sync.feed.reader import FeedReader
from syncbeat_server.sync.feed.resume import can_resume
from syncbeat_server.sync.model import (
    Activity,
    Change,
    ChangesSent,
    Checkpoint,
    Cursor,
    DeviceKey,
    Hint,
    Reset,
    ResetAll,
    StreamEvent,
)
from syncbeat_server.sync.policy import Situation, Tuning
from syncbeat_server.sync.store import firehose_pages
from syncbeat_server.sync.streams.hub import Hub, Subscription
from syncbeat_server.sync.streams.lifetime import REFETCH_S, RETRY_S, Lifetime, jitter

_LOOK_S = 5.0
_LOOK_WHEN_DEAF_S = 1.0
_PAUSE_S = 0.01  # between two rounds: what is published meanwhile comes together
_PAGE = 200
_AT_ONCE = 50  # changes of one event, so that others get their turn in between
_CURSORS_EVERY_S = 5.0
_MAX_CURSORS = 100_000
MOST_CURSORS = 4_000
"""Of one checkpoint, at up to 200 octets each: less than 1 MiB, so that it fits every client."""


@dataclass(frozen=True)
class FirehoseRequest:
    """Where a stream of a whole app begins: at `token`, or, where that is empty, now, and in some scopes at `cursors`.
    No token: the caller knows cursors only, and gets those. See `Lifetime` for `recheck`."""

    app_id: str
    token: str | None
    cursors: tuple[Cursor, ...]
    activity: Activity
    heartbeat_s: float
    expires_at: datetime | None
    recheck: Callable[[], Awaitable[None]]


@dataclass
class _Progress:
    """Where one stream is. `known`: how far it is in scopes that it began in by cursor, and for who resumes by cursors,
    in all that it met; `pruned`: as in `Place`, when its round began; `is_level`: it has all that there was."""

    place: Place
    lifetime: Lifetime
    known: dict[str, Cursor] = field(default_factory=dict)
    crowded: bool = False
    pruned: int = 0
    is_level: bool = False
    is_over: bool = False


class Firehose:
    """Serves WatchHints of all scopes on this process."""

    def __init__(
        self,
        hub: Hub,
        database: Database,
        reader: FeedReader,
        clock: Clock,
        tuning: Callable[[str], Tuning],
        listening: Callable[[], bool],
        turn: Callable[[], float],
    ) -> None:
        """`listening` knows whether wake-ups of other processes can arrive; `turn` is `Lifetime`'s."""
        self._hub = hub
        self._database = database
        self._reader = reader
        self._clock = clock
        self._tuning = tuning
        self._listening = listening
        self._turn = turn

    async def watch(self, request: FirehoseRequest) -> AsyncGenerator[StreamEvent, None]:
        """The events of one stream, until the token expires, the process drains or half an hour is over.

        Raises:
            InvalidRequest: the resume token is not one of this app.
            NotFound: a cursor names a scope that does not exist.
            TokenExpired: the caller's token came to its end.
            TokenRevoked: it was taken back.
        """
        given = _place_of(request)
        subscription = Subscription(DeviceKey(request.app_id, "", ""), all_scopes=True)
        self._hub.add(subscription)  # before anything is read: what comes in between is looked for again
        try:
            lifetime = Lifetime(self._hub, subscription, self._clock, request.expires_at, request.recheck, self._turn)
            await lifetime.check()
            progress = _Progress(given or await self._now(request.app_id), lifetime)
            yield self._hint(request)
            async for event in self._catch_up(request, progress):
                yield event
            async for event in self._follow(request, subscription, progress):
                yield event
        finally:
            self._hub.remove(subscription)

    async def _now(self, app_id: str) -> Place:
        async with self._database.connection() as conn:
            look = await firehose_pages.look(conn, app_id)
        return _here(look)

    async def _catch_up(self, request: FirehoseRequest, progress: _Progress) -> AsyncIterator[StreamEvent]:
        """What came since the cursors that were given. Some of it the first round will find again, and not tell."""
        named = {cursor.scope: cursor for cursor in request.cursors}
        states = await self._reader.heads(request.app_id, None, list(named))
        for name, state in zip(named, states, strict=True):
            if state is None:
                raise NotFound("there is no such scope", scope=name)
            cursor = named[name]
            if cursor.sequence is None:
                continue
            progress.known[name] = state.cursor
            if not can_resume(cursor, state):
                yield self._reset(state.cursor)
                continue
            while True:
                (page,) = await self._reader.pages(request.app_id, None, [cursor], _PAGE)
                if page is None:
                    raise NotFound("there is no such scope", scope=name)
                if page.reset:
                    progress.known[name] = page.state.cursor
                    yield self._reset(page.state.cursor)
                    break
                for event in _sent(page.changes):
                    yield event
                cursor = progress.known[name] = page.next
                if not page.more:
                    break

    async def _follow(
        self, request: FirehoseRequest, subscription: Subscription, progress: _Progress
    ) -> AsyncIterator[StreamEvent]:
        lifetime = progress.lifetime
        checkpoint_at = self._clock.monotonic()
        while not (lifetime.is_over or progress.is_over):
            told = False
            try:
                await lifetime.check()
                async for event in self._page(request, progress):
                    told = True
                    yield event
            except DependencyDown:
                # The stream outlives an outage of the database: where it is it keeps.
                await subscription.wait(RETRY_S)
                continue
            if told and request.token is None:
                checkpoint_at = min(checkpoint_at, self._clock.monotonic() + _CURSORS_EVERY_S)
            if (told and request.token is not None) or self._clock.monotonic() >= checkpoint_at:
                for checkpoint in self._checkpoints(request, progress):
                    yield checkpoint
                checkpoint_at = self._clock.monotonic() + request.heartbeat_s
            if progress.is_level:
                await self._wait(subscription, lifetime, checkpoint_at)
        for checkpoint in self._checkpoints(request, progress):
            yield checkpoint
        yield lifetime.drain()

    async def _page(self, request: FirehoseRequest, progress: _Progress) -> AsyncIterator[StreamEvent]:
        """The events of the next page, which is held no longer than it takes to tell them."""
        place = progress.place
        async with self._database.connection() as conn:
            page = await firehose_pages.next_page(conn, request.app_id, place, crowded=progress.crowded)
        if not _can_go_on(place, page.look):
            if request.token is None:
                progress.is_over = True  # cursors say themselves what they are of: to whoever comes back with them
                return
            # From the start: whoever drops all that it keeps, and goes on reading, gets all there is.
            progress.place = Place(page.look.feed, None, pruned=page.look.pruned)
            progress.crowded, progress.is_level = False, False
            progress.known.clear()
            yield ResetAll(encode(request.app_id, progress.place), jitter(0.0, REFETCH_S) + self._turn())
            return
        for event in _sent(self._news(request, progress, page.changes)):
            yield event
        if place.until is None:
            progress.pruned = page.look.pruned
        progress.is_level = page.after is None
        if page.after is None:
            pruned = max(progress.pruned, place.pruned)
            progress.place, progress.crowded = Place(place.feed, page.until, pruned=pruned), False
        else:
            progress.place = place._replace(until=page.until, after=page.after)
            progress.crowded = page.crowded

    async def _wait(self, subscription: Subscription, lifetime: Lifetime, checkpoint_at: float) -> None:
        look_s = _LOOK_S if self._listening() else _LOOK_WHEN_DEAF_S
        await asyncio.sleep(_PAUSE_S)
        await subscription.wait(min(look_s, lifetime.patience_s(checkpoint_at)))

    def _news(self, request: FirehoseRequest, progress: _Progress, changes: Sequence[Change]) -> list[Change]:
        """Those that were not told by cursor; the cursors move past them."""
        known = progress.known
        news = []
        for change in changes:
            cursor = known.get(change.scope)
            if cursor is not None and cursor.epoch == change.epoch and change.sequence <= (cursor.sequence or 0):
                continue
            news.append(change)
            if cursor is not None or request.token is None:
                known[change.scope] = Cursor(change.scope, change.epoch, change.sequence)
        for scope in list(islice(known, max(0, len(known) - _MAX_CURSORS))):
            del known[scope]
        return news

    def _checkpoints(self, request: FirehoseRequest, progress: _Progress) -> Iterator[Checkpoint]:
        """Where the stream is: in one message by its token, in several by its cursors, if there are very many."""
        hint, left = self._hint(request), progress.lifetime.remaining_s
        if request.token is not None:
            yield Checkpoint((), hint, left, encode(request.app_id, progress.place))
            return
        known = tuple(progress.known.values())
        for start in range(0, max(1, len(known)), MOST_CURSORS):
            yield Checkpoint(known[start : start + MOST_CURSORS], hint, left)

    def _hint(self, request: FirehoseRequest) -> Hint:
        # Nobody polls a whole app: the hint is that of a device without scopes.
        situation = Situation([], request.activity)
        return policy.decide(situation, self._tuning(request.app_id), self._clock.now(), changed=False)

    def _reset(self, head: Cursor) -> Reset:
        return Reset(head, jitter(0.0, REFETCH_S) + self._turn())


def _place_of(request: FirehoseRequest) -> Place | None:
    if not request.token:
        return None
    try:
        return decode(request.app_id, request.token)
    except NotAToken as error:
        raise InvalidRequest(FieldViolation("token", "not a token that a checkpoint of this app carried")) from error


def _can_go_on(place: Place, look: firehose_pages.Look) -> bool:
    """Whether all that came after a place is still told: it is of this feed, not of a future that a restore undid, and
    no tombstone that it lacks was removed."""
    newest = place.until or place.since
    if place.feed != look.feed or (newest is not None and newest.xmax > look.now.xmax):
        return False
    # Who has been told nothing when a list began lacks no deletion of before.
    floor = place.since or place.until
    return floor is None or look.pruned < floor.xmin or look.pruned == place.pruned


def _here(look: firehose_pages.Look) -> Place:
    return Place(look.feed, look.now, pruned=look.pruned)


def _sent(changes: Sequence[Change]) -> list[ChangesSent]:
    return [ChangesSent(tuple(changes[start : start + _AT_ONCE])) for start in range(0, len(changes), _AT_ONCE)]
