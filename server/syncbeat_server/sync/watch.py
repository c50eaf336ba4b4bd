"""Hint streams: the hub says that there is news, the store says what, the cursors say where each stream is."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from syncbeat_server.clock import Clock
from syncbeat_server.errors import AccessDenied, DependencyDown, NotFound, TokenExpired
from syncbeat_server.sync import policy
from syncbeat_server.sync.feed import FeedReader
from syncbeat_server.sync.hub import Hub, Subscription
from syncbeat_server.sync.model import (
    Activity,
    Change,
    ChangesSent,
    Checkpoint,
    Cursor,
    DeviceKey,
    Drain,
    Hint,
    Reset,
    ScopeState,
    StreamEvent,
)
from syncbeat_server.sync.policy import Situation, Tuning
from syncbeat_server.sync.recorder import Recorder
from syncbeat_server.sync.resuming import can_resume
from syncbeat_server.sync.seen import SeenRecorder

MIN_HEARTBEAT_S, MAX_HEARTBEAT_S, DEFAULT_HEARTBEAT_S = 5.0, 300.0, 30.0
_PAGE = 200
_REFETCH_S = 2.0
_RECONNECT_S = 2.0
_MAX_AGE_S = 30 * 60.0
_RECHECK_S = 50.0
_HINT_MOVES_BY = 2.0
_RETRY_S = 1.0
_LONGEST_TRANSACTION_S = 10.0
_MAX_CURSORS_OF_ALL = 100_000


@dataclass(frozen=True)
class WatchRequest:
    """Who watches what. `user_id` None: a service that sees every scope of the app.

    `recheck` raises when the caller is no longer let in, DependencyDown when that cannot be known now.
    """

    device: DeviceKey
    user_id: str | None
    cursors: tuple[Cursor, ...]
    activity: Activity
    heartbeat_s: float
    expires_at: datetime | None
    recheck: Callable[[], Awaitable[None]]


@dataclass
class _Progress:
    """Where one stream is."""

    opened_at: datetime
    states: dict[str, ScopeState] = field(default_factory=dict)
    sent: dict[str, Cursor] = field(default_factory=dict)
    shown: set[str] = field(default_factory=set)
    hint: Hint | None = None
    recheck_at: float = 0.0


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
        self._jitter: Callable[[float, float], float] = random.SystemRandom().uniform

    async def watch(self, request: WatchRequest) -> AsyncGenerator[StreamEvent, None]:
        """The events of one stream, until the token expires, the process drains or half an hour is over.

        Raises:
            AccessDenied: a cursor names a scope that the user is not a member of.
            NotFound: a service's cursor names a scope that does not exist.
            TokenExpired: the caller's token came to its end.
            TokenRevoked: it was taken back.
        """
        subscription = Subscription(request.device, all_scopes=request.user_id is None)
        self._hub.add(subscription)
        self._tell_moved(request)
        try:
            progress = _Progress(self._clock.now())
            async for event in self._open(request, subscription, progress):
                yield event
            if request.user_id is not None:
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
                if request.user_id is None:
                    raise NotFound("there is no such scope", scope=name)
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
        progress.sent[state.scope] = state.cursor
        if given is None or given.sequence is None:
            return None
        if not can_resume(given, state):
            return Reset(state.cursor, self._jitter(0.0, _REFETCH_S) + self._turn())
        progress.sent[state.scope] = given._replace(epoch=given.epoch or state.epoch)
        return None

    async def _follow(
        self, request: WatchRequest, subscription: Subscription, progress: _Progress
    ) -> AsyncIterator[StreamEvent]:
        now = self._clock.monotonic()
        ends_at = now + _MAX_AGE_S * self._jitter(0.85, 1.0)
        checkpoint_at = now
        while True:
            if self._hub.draining or self._clock.monotonic() >= ends_at:
                yield self._checkpoint(request, progress)
                yield Drain(self._jitter(0.1, _RECONNECT_S) + self._turn())
                return
            try:
                await self._recheck(request, subscription, progress)
                news = await self._catch_up(request, subscription, progress)
            except DependencyDown:
                # The stream outlives an outage of the database: what it missed is read when it is back.
                subscription.dirty |= set(progress.sent)
                subscription.members_changed = True
                subscription.woken = False
                await subscription.wait(_RETRY_S)
                continue
            for event in news:
                yield event
            moved = self._moved_hint(request, progress)
            if moved is not None:
                yield moved
            if news or self._clock.monotonic() >= checkpoint_at:
                yield self._checkpoint(request, progress)
                self._note_seen(request, progress)
                checkpoint_at = self._clock.monotonic() + request.heartbeat_s
            if not subscription.dirty:
                await subscription.wait(self._patience(request, min(checkpoint_at, ends_at, progress.recheck_at)))

    async def _recheck(self, request: WatchRequest, subscription: Subscription, progress: _Progress) -> None:
        if request.expires_at is not None and self._clock.now() >= request.expires_at:
            raise TokenExpired("the access token has expired")
        if not subscription.recheck and self._clock.monotonic() < progress.recheck_at:
            return
        # First the flag: what is told while the answer is under way is asked again.
        subscription.recheck = False
        try:
            await request.recheck()
        except DependencyDown:
            subscription.recheck = True
            raise
        progress.recheck_at = self._clock.monotonic() + _RECHECK_S * self._jitter(0.9, 1.0)

    def _patience(self, request: WatchRequest, until: float) -> float:
        seconds = until - self._clock.monotonic()
        if request.expires_at is not None:
            seconds = min(seconds, (request.expires_at - self._clock.now()).total_seconds())
        return seconds

    async def _catch_up(
        self, request: WatchRequest, subscription: Subscription, progress: _Progress
    ) -> list[StreamEvent]:
        if subscription.members_changed and request.user_id is not None:
            subscription.members_changed = False
            await self._refresh_members(request, subscription, progress, opening=False)
        dirty = subscription.take_dirty()
        if subscription.all_sent:
            subscription.all_sent = False
            dirty |= progress.sent.keys()
        try:
            if request.user_id is None:
                subscription.dirty |= await self._learn_scopes(request, progress, dirty)
            cursors = [progress.sent[scope] for scope in sorted(dirty & progress.sent.keys())]
            pages = await self._reader.pages(request.device.app_id, request.user_id, cursors, _PAGE)
        except DependencyDown:
            subscription.dirty |= dirty  # a scope that is not known yet stands nowhere else
            raise
        events: list[StreamEvent] = []
        for cursor, page in zip(cursors, pages, strict=True):
            if page is None:
                self._leave(subscription, progress, cursor.scope)
                continue
            progress.states[cursor.scope] = page.state
            if page.reset:
                events.append(Reset(page.state.cursor, self._jitter(0.0, _REFETCH_S) + self._turn()))
                progress.sent[cursor.scope] = page.state.cursor
                progress.shown.discard(cursor.scope)
                continue
            if page.changes:
                events.append(ChangesSent(page.changes))
                self._record(request, progress, page.changes)
                progress.shown.add(cursor.scope)
            progress.sent[cursor.scope] = page.next
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
        if request.user_id is None:
            return
        states = await self._reader.member_scopes(request.device.app_id, request.user_id)
        present = {state.scope for state in states}
        for scope in set(progress.sent) - present:
            self._leave(subscription, progress, scope)
        joined = [state for state in states if state.scope not in progress.sent]
        begin: dict[str, int] = {}
        if joined and not opening:
            # What was published between the join and its being noticed here is news to this stream.
            names = [state.scope for state in joined]
            begin = await self._reader.joined_starts(
                request.device.app_id, request.user_id, names, _LONGEST_TRANSACTION_S
            )
        for state in joined:
            self._start_scope(progress, state, None)
            progress.sent[state.scope] = state.cursor._replace(sequence=begin.get(state.scope, state.head))
        self._hub.follow(subscription, progress.sent)
        subscription.dirty |= begin.keys()

    async def _learn_scopes(self, request: WatchRequest, progress: _Progress, dirty: set[str]) -> set[str]:
        # A stream of all scopes knows a scope from its first news on, and starts where it stood when the stream opened.
        # The answer is what is left for the next round.
        unknown = sorted(dirty - progress.sent.keys())
        if not unknown:
            return set()
        since = progress.opened_at - timedelta(seconds=_LONGEST_TRANSACTION_S)
        for state, sequence in await self._reader.starts(request.device.app_id, unknown[:_PAGE], since):
            progress.states[state.scope] = state
            progress.sent[state.scope] = state.cursor._replace(sequence=sequence)
        while len(progress.sent) > _MAX_CURSORS_OF_ALL:
            oldest = next(iter(progress.sent))
            del progress.sent[oldest], progress.states[oldest]
        return set(unknown[_PAGE:])

    def _leave(self, subscription: Subscription, progress: _Progress, scope: str) -> None:
        progress.sent.pop(scope, None)
        progress.states.pop(scope, None)
        progress.shown.discard(scope)
        self._hub.follow(subscription, progress.sent)

    def _moved_hint(self, request: WatchRequest, progress: _Progress) -> Hint | None:
        hint = self._hint(request, progress)
        before = progress.hint
        if before is not None:
            ratio = hint.poll_interval_s / before.poll_interval_s
            if 1 / _HINT_MOVES_BY < ratio < _HINT_MOVES_BY:
                return None
        progress.hint = hint
        return hint

    def _hint(self, request: WatchRequest, progress: _Progress) -> Hint:
        situation = Situation(list(progress.states.values()), request.activity)
        return policy.decide(situation, self._tuning(request.device.app_id), self._clock.now(), changed=False)

    def _checkpoint(self, request: WatchRequest, progress: _Progress) -> Checkpoint:
        left = None if request.expires_at is None else (request.expires_at - self._clock.now()).total_seconds()
        return Checkpoint(tuple(progress.sent.values()), self._hint(request, progress), left)

    def _note_seen(self, request: WatchRequest, progress: _Progress) -> None:
        # Only what the device named or was sent: where it began "from now" it may never have seen what is there.
        if request.user_id is not None and request.device.device_id:
            shown = progress.shown & progress.sent.keys()
            self._seen.note(request.device, [progress.sent[scope] for scope in shown])
