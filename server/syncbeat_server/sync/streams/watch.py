"""Hint streams: the hub says that there is news, the store says what, the cursors say where each stream is."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from syncbeat_server.clock import Clock
from syncbeat_server.directory.model import MAX_SCOPES
from syncbeat_server.errors import AccessDenied, DependencyDown
from syncbeat_server.sync import policy
from syncbeat_server.sync.feed.reader import FeedReader
from syncbeat_server.sync.feed.resume import can_resume
from syncbeat_server.sync.hints.cursor_recorder import SeenRecorder
from syncbeat_server.sync.model import (
    Activity,
    Change,
    ChangesSent,
    Checkpoint,
    Cursor,
    DeviceKey,
    Hint,
    Reset,
    ScopeState,
    StreamEvent,
)
from syncbeat_server.sync.policy import Situation, Tuning
from syncbeat_server.sync.streams.hub import Hub, Subscription
from syncbeat_server.sync.streams.lifetime import REFETCH_S, RETRY_S, Lifetime, jitter
from syncbeat_server.sync.tuning.hint_recorder import Recorder

_PAGE = 200
_HINT_MOVES_BY = 2.0
_LONGEST_TRANSACTION_S = 10.0
_TELL_EVERY_S = 5.0  # a checkpoint names every scope: up to 4,000 for a change of one
_MOST_FOLLOWED = 2 * MAX_SCOPES  # those that are named, and those that changed last


@dataclass(frozen=True)
class WatchRequest:
    """Who watches, from where on; see `Lifetime` for `recheck`."""

    device: DeviceKey
    user_id: str
    cursors: tuple[Cursor, ...]
    activity: Activity
    heartbeat_s: float
    expires_at: datetime | None
    recheck: Callable[[], Awaitable[None]]


@dataclass
class _Progress:
    """Where one stream is. `more_scopes`: its user has more scopes than it follows; `unnoted`: the scopes whose cursors
    moved and are not noted as seen; `moved`: what it follows, or where it is, is not as the last checkpoint said;
    `stirred`: nor may the hint be."""

    opened_at: datetime
    states: dict[str, ScopeState] = field(default_factory=dict)
    sent: dict[str, Cursor] = field(default_factory=dict)
    shown: set[str] = field(default_factory=set)
    hint: Hint | None = None
    more_scopes: bool = False
    unnoted: set[str] = field(default_factory=set)
    moved: bool = False
    stirred: bool = False

    def move(self, cursor: Cursor) -> None:
        """Take note of where it is in a scope now."""
        if self.sent.get(cursor.scope) != cursor:
            self.sent[cursor.scope] = cursor
            self.unnoted.add(cursor.scope)
            self.moved = True

    def leave(self, scope: str) -> None:
        """Forget a scope."""
        self.states.pop(scope, None)
        self.shown.discard(scope)
        if self.sent.pop(scope, None) is not None:
            self.moved = True


class _Agenda:
    """When a stream tells its hint and where it is: at each heartbeat, and within 5 s of news, but for heartbeats no
    more often than that. Streams of one scope draw their moments, so that they do not all tell at once."""

    def __init__(self, clock: Clock, heartbeat_s: float) -> None:
        self._clock = clock
        self._heartbeat_s = heartbeat_s
        self._told_at = -math.inf
        self._news_at = math.inf
        self._heartbeat_at = clock.monotonic()

    @property
    def next_at(self) -> float:
        """The next moment."""
        return min(self._news_at, self._heartbeat_at)

    def heard(self) -> None:
        """There is news to tell."""
        if self._news_at == math.inf:
            now = self._clock.monotonic()
            self._news_at = max(now + jitter(0.0, _TELL_EVERY_S), self._told_at + _TELL_EVERY_S)

    def is_due(self) -> bool:
        """Whether to tell now."""
        return self._clock.monotonic() >= self.next_at

    def is_heartbeat(self) -> bool:
        """Whether a checkpoint is due, news or not."""
        return self._clock.monotonic() >= self._heartbeat_at

    def told(self, *, is_checkpoint: bool) -> None:
        """What was due has been told."""
        self._told_at, self._news_at = self._clock.monotonic(), math.inf
        if is_checkpoint:
            self._heartbeat_at = self._told_at + self._heartbeat_s


class HintStreams:
    """Serves WatchHints on this process."""

    def __init__(
        self,
        hub: Hub,
        reader: FeedReader,
        seen: SeenRecorder,
        clock: Clock,
        device_moved: Callable[[DeviceKey], None],
        tuning: Callable[[str], Tuning],
        reported: Callable[[DeviceKey, Activity], None],
        turn: Callable[[], float],
        recorder: Recorder,
    ) -> None:
        """`device_moved` is told of each device whose stream opened or closed.

        `tuning` knows by what each app's hints are decided; `reported` is told what a user's stream says at its start;
        `turn` knows in how many seconds one of many who are sent away together may come back; `recorder` counts what
        streams show.
        """
        self._turn = turn
        self._recorder = recorder
        self._reported = reported
        self._tuning = tuning
        self._device_moved = device_moved
        self._hub = hub
        self._reader = reader
        self._seen = seen
        self._clock = clock

    async def watch(self, request: WatchRequest) -> AsyncGenerator[StreamEvent, None]:
        """The events of one stream, until the token expires, the process drains or it is as old as streams become.

        Raises:
            AccessDenied: a cursor names a scope that the user is not a member of.
            RateLimited: the user, or the device, has as many streams open as it may.
            TokenExpired: the caller's token came to its end.
            TokenRevoked: it was taken back.
        """
        subscription = Subscription(request.device, all_scopes=False)
        self._hub.add(subscription)
        self._tell_moved(request)
        try:
            progress = _Progress(self._clock.now())
            async for event in self._open(request, subscription, progress):
                yield event
            self._reported(request.device, request.activity)
            async for event in self._follow(request, subscription, progress):
                yield event
        finally:
            self._hub.remove(subscription)
            self._tell_moved(request)

    def _tell_moved(self, request: WatchRequest) -> None:
        if request.device.device_id:
            self._device_moved(request.device)

    async def _open(
        self, request: WatchRequest, subscription: Subscription, progress: _Progress
    ) -> AsyncIterator[StreamEvent]:
        # Follow first and read then: news between the two is seen twice and sent once.
        given = {cursor.scope: cursor for cursor in request.cursors}
        self._hub.follow(subscription, given)
        named = await self._reader.heads(request.device.app_id, request.user_id, list(given))
        for name, state in zip(given, named, strict=True):
            if state is None:
                raise AccessDenied("not a member of this scope", scope=name)
            reset = self._start_scope(progress, state, given[name])
            if reset is None and given[name].sequence is not None:
                progress.shown.add(name)
            if reset is not None:
                yield reset
        await self._refresh_members(request, subscription, progress, opening=True)
        self._note_seen(request, progress)
        subscription.dirty |= set(progress.sent)

    def _start_scope(self, progress: _Progress, state: ScopeState, given: Cursor | None) -> Reset | None:
        progress.states[state.scope] = state
        progress.move(state.cursor)
        if given is None or given.sequence is None:
            return None
        if not can_resume(given, state):
            return Reset(state.cursor, jitter(0.0, REFETCH_S) + self._turn())
        progress.move(given._replace(epoch=given.epoch or state.epoch))
        return None

    async def _follow(
        self, request: WatchRequest, subscription: Subscription, progress: _Progress
    ) -> AsyncIterator[StreamEvent]:
        lifetime = Lifetime(self._hub, subscription, self._clock, request.expires_at, request.recheck, self._turn)
        agenda = _Agenda(self._clock, request.heartbeat_s)
        while True:
            if lifetime.is_over:
                yield self._checkpoint(progress, self._hint(request, progress), lifetime)
                yield lifetime.drain()
                return
            try:
                await lifetime.check()
                news = await self._catch_up(request, subscription, progress)
            except DependencyDown:
                # The stream outlives an outage of the database: what it missed is read when it is back.
                subscription.dirty |= set(progress.sent)
                subscription.members_changed = True
                subscription.woken = False
                await subscription.wait(RETRY_S)
                continue
            for event in news:
                yield event
            self._note_seen(request, progress)
            if progress.moved or progress.stirred:
                agenda.heard()
            for tidings in self._due(request, progress, lifetime, agenda):
                yield tidings
            if not subscription.dirty:
                await subscription.wait(lifetime.patience_s(agenda.next_at))

    def _due(
        self, request: WatchRequest, progress: _Progress, lifetime: Lifetime, agenda: _Agenda
    ) -> list[StreamEvent]:
        """What is to be told now: the hint if it moved, and where the stream is if that moved, or at a heartbeat."""
        if not agenda.is_due():
            return []
        tidings: list[StreamEvent] = []
        hint = self._hint(request, progress)
        if _has_moved(hint, progress.hint):
            progress.hint = hint
            tidings.append(hint)
        is_checkpoint = progress.moved or agenda.is_heartbeat()
        if is_checkpoint:
            tidings.append(self._checkpoint(progress, hint, lifetime))
        progress.moved = progress.stirred = False
        agenda.told(is_checkpoint=is_checkpoint)
        return tidings

    async def _catch_up(
        self, request: WatchRequest, subscription: Subscription, progress: _Progress
    ) -> list[StreamEvent]:
        if subscription.members_changed:
            subscription.members_changed = False
            await self._refresh_members(request, subscription, progress, opening=False)
        dirty = subscription.take_dirty()
        if subscription.all_sent:
            subscription.all_sent = False
            dirty |= progress.sent.keys()
        try:
            known = sorted(dirty & progress.sent.keys())
            subscription.dirty |= set(known[_PAGE:])
            cursors = [progress.sent[scope] for scope in known[:_PAGE]]
            pages = await self._reader.pages(request.device.app_id, request.user_id, cursors, _PAGE)
        except DependencyDown:
            subscription.dirty |= dirty
            raise
        events: list[StreamEvent] = []
        for cursor, page in zip(cursors, pages, strict=True):
            if page is None:
                self._leave(subscription, progress, cursor.scope)
                continue
            progress.stirred = progress.stirred or progress.states[cursor.scope] != page.state
            progress.states[cursor.scope] = page.state
            if page.reset:
                events.append(Reset(page.state.cursor, jitter(0.0, REFETCH_S) + self._turn()))
                progress.move(page.state.cursor)
                progress.shown.discard(cursor.scope)
                continue
            if page.changes:
                events.append(ChangesSent(page.changes))
                self._record(request, progress, page.changes)
                progress.shown.add(cursor.scope)
            progress.move(page.next)
            if page.more:
                subscription.dirty.add(cursor.scope)
        return events

    def _record(self, request: WatchRequest, progress: _Progress, changes: Sequence[Change]) -> None:
        """Count what a device's stream shows, but for what it missed before."""
        if request.device.device_id:
            instants = [change.changed_at.timestamp() for change in changes if change.changed_at > progress.opened_at]
            self._recorder.streamed(request.device.app_id, self._clock.now().timestamp(), instants)

    async def _refresh_members(
        self, request: WatchRequest, subscription: Subscription, progress: _Progress, *, opening: bool
    ) -> None:
        app_id, user_id = request.device.app_id, request.user_id
        states, more_scopes = await self._reader.member_scopes(app_id, user_id)
        progress.stirred = progress.stirred or progress.more_scopes != more_scopes
        progress.more_scopes = more_scopes
        gone = list(progress.sent.keys() - {state.scope for state in states})
        if progress.more_scopes:
            # Of very many those that changed last are told, and the stream may follow others.
            still = await self._reader.heads(app_id, user_id, gone)
            gone = [scope for scope, state in zip(gone, still, strict=True) if state is None]
        for scope in gone:
            self._leave(subscription, progress, scope)
        room = max(0, _MOST_FOLLOWED - len(progress.sent))
        joined = [state for state in states if state.scope not in progress.sent][:room]
        begin: dict[str, int] = {}
        if joined and not opening:
            # What was published between the join and its being noticed here is news to this stream.
            names = [state.scope for state in joined]
            begin = await self._reader.joined_starts(app_id, user_id, names, _LONGEST_TRANSACTION_S)
        for state in joined:
            self._start_scope(progress, state, None)
            progress.move(state.cursor._replace(sequence=begin.get(state.scope, state.head)))
        self._hub.follow(subscription, progress.sent)
        subscription.dirty |= begin.keys()

    def _leave(self, subscription: Subscription, progress: _Progress, scope: str) -> None:
        progress.leave(scope)
        self._hub.follow(subscription, progress.sent)

    def _hint(self, request: WatchRequest, progress: _Progress) -> Hint:
        situation = Situation(list(progress.states.values()), request.activity, more_scopes=progress.more_scopes)
        return policy.decide(situation, self._tuning(request.device.app_id), self._clock.now(), changed=False)

    def _checkpoint(self, progress: _Progress, hint: Hint, lifetime: Lifetime) -> Checkpoint:
        return Checkpoint(tuple(progress.sent.values()), hint, lifetime.remaining_s)

    def _note_seen(self, request: WatchRequest, progress: _Progress) -> None:
        # Only what the device named or was sent: where it began "from now" it may never have seen what is there.
        if request.device.device_id:
            shown = progress.unnoted & progress.shown & progress.sent.keys()
            self._seen.note(request.device, [progress.sent[scope] for scope in shown])
        progress.unnoted.clear()


def _has_moved(hint: Hint, before: Hint | None) -> bool:
    """Whether a hint differs from the one that was told last by enough to tell it."""
    if before is None:
        return True
    return not 1 / _HINT_MOVES_BY < hint.poll_interval_s / before.poll_interval_s < _HINT_MOVES_BY
