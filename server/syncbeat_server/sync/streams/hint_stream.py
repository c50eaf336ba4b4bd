"""Streams the changes and hints of one user: the hub wakes it, the store has the news, its cursors say where it is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from syncbeat_server.directory.model import MAX_SCOPES
from syncbeat_server.errors import AccessDenied, DependencyDown, Overloaded
from syncbeat_server.sync.feed.resumable_cursors import can_resume
from syncbeat_server.sync.hints.recorders import Recorders
from syncbeat_server.sync.model import (
    Activity,
    Change,
    ChangesSent,
    Checkpoint,
    Cursor,
    DeviceKey,
    FeedPage,
    Hint,
    Reset,
    ScopeState,
    StreamEvent,
)
from syncbeat_server.sync.streams.checkpoint_schedule import CheckpointSchedule
from syncbeat_server.sync.streams.drain_and_lifetime import Lifetime
from syncbeat_server.sync.streams.stream_context import StreamContext
from syncbeat_server.sync.streams.stream_progress import StreamProgress
from syncbeat_server.sync.streams.subscription import Subscription

_MIN_HINT_RATIO = 2.0  # of two intervals, from which on a hint is sent again
_LONGEST_TRANSACTION_S = 10.0
_MAX_FOLLOWED = 2 * MAX_SCOPES  # those that are named, and those that changed last


@dataclass(frozen=True)
class WatchRequest:
    """Asks for the stream of a user from `cursors` on; see `Lifetime` for `recheck`."""

    device: DeviceKey
    user_id: str
    cursors: tuple[Cursor, ...]
    activity: Activity
    heartbeat_s: float
    expires_at: datetime | None
    recheck: Callable[[], Awaitable[None]]


class HintStream:
    """Produces the events of one open stream."""

    def __init__(
        self, context: StreamContext, recorders: Recorders, request: WatchRequest, subscription: Subscription
    ) -> None:
        self._context = context
        self._hub, self._reader, self._clock = context.hub, context.reader, context.clock
        self._rule = context.rule
        self._recorders = recorders
        self._request = request
        self._subscription = subscription
        self._progress = StreamProgress(context.clock.now())
        subscription.cursors = self._progress.sent

    async def open(self) -> AsyncIterator[Reset]:
        """Follow the named scopes and those of the user; yield a reset for each cursor that cannot be resumed.

        Raises:
            AccessDenied: a cursor names a scope that the user is not a member of.
        """
        request, progress = self._request, self._progress
        # Follow first and read then: news between the two is seen twice and sent once.
        given = {cursor.scope: cursor for cursor in request.cursors}
        self._hub.follow(self._subscription, given)
        named = await self._reader.heads(request.device.app_id, request.user_id, list(given))
        for name, state in zip(given, named, strict=True):
            if state is None:
                raise AccessDenied("not a member of this scope", scope=name)
            reset = self._start_scope(state, given[name])
            if reset is None and given[name].sequence is not None:
                progress.shown.add(name)
            if reset is not None:
                yield reset
        await self._refresh_members(opening=True)
        self._record_cursors()
        self._subscription.dirty |= set(progress.sent)

    async def follow(self) -> AsyncIterator[StreamEvent]:
        """Yield changes, hints and checkpoints until the stream ends with a drain.

        Raises:
            TokenExpired: the caller's token expired.
            TokenRevoked: it was revoked.
        """
        request, subscription, progress = self._request, self._subscription, self._progress
        lifetime = Lifetime(self._context, subscription, request.expires_at, request.recheck)
        schedule = CheckpointSchedule(self._context, request.heartbeat_s)
        while True:
            if lifetime.is_over:
                yield self._checkpoint(self._hint(), lifetime)
                yield lifetime.drain()
                return
            try:
                await lifetime.check()
                news = await self._catch_up()
            except (DependencyDown, Overloaded):
                # The stream outlives a database that is away or overloaded: what it missed is read afterwards. If it
                # ended, and all others with it, they would come back as more load.
                subscription.dirty |= set(progress.sent)
                subscription.members_changed = True
                subscription.woken = False
                await subscription.wait(self._rule.retry_s)
                continue
            for event in news:
                yield event
            self._record_cursors()
            if progress.cursors_changed or progress.inputs_changed:
                schedule.mark_news()
            for event in self._due_events(lifetime, schedule):
                yield event
            if not subscription.dirty and subscription.page is None:
                await subscription.wait(lifetime.wait_limit_s(schedule.next_at))

    def _start_scope(self, state: ScopeState, given: Cursor | None) -> Reset | None:
        progress = self._progress
        progress.states[state.scope] = state
        progress.move(state.cursor)
        if given is None or given.sequence is None:
            return None
        if not can_resume(given, state):
            return Reset(state.cursor, self._context.refetch_delay_s())
        progress.move(given._replace(epoch=given.epoch or state.epoch))
        return None

    def _due_events(self, lifetime: Lifetime, schedule: CheckpointSchedule) -> list[StreamEvent]:
        """Return the hint if it changed enough, and a checkpoint if cursors moved or a heartbeat is due."""
        if not schedule.is_due():
            return []
        progress = self._progress
        events: list[StreamEvent] = []
        hint = self._hint()
        if _differs(hint, progress.hint):
            progress.hint = hint
            events.append(hint)
        is_checkpoint = progress.cursors_changed or schedule.is_heartbeat_due()
        if is_checkpoint:
            events.append(self._checkpoint(hint, lifetime))
        progress.cursors_changed = progress.inputs_changed = False
        schedule.mark_sent(is_checkpoint=is_checkpoint)
        return events

    async def _catch_up(self) -> list[StreamEvent]:
        """Read the scopes with news, a page each, and return the events for them. Raises DependencyDown."""
        request, subscription, progress = self._request, self._subscription, self._progress
        if subscription.members_changed:
            subscription.members_changed = False
            await self._refresh_members(opening=False)
        dirty = subscription.take_dirty()
        if subscription.reread_all:
            subscription.reread_all = False
            dirty |= progress.sent.keys()
        size = self._rule.page_size
        try:
            followed = sorted(dirty & progress.sent.keys())
            subscription.dirty |= set(followed[size:])
            cursors = [progress.sent[scope] for scope in followed[:size]]
            pages = await self._reader.pages(request.device.app_id, request.user_id, cursors, size)
        except (DependencyDown, Overloaded):
            subscription.dirty |= dirty
            raise
        events: list[StreamEvent] = []
        for cursor, page in zip(cursors, pages, strict=True):
            if page is None:
                self._leave(cursor.scope)
            else:
                events += self._page_events(page)
        if subscription.page is not None:
            events += self._read_ahead_events()
        return events

    def _read_ahead_events(self) -> list[StreamEvent]:
        """Return the events for the page that was read ahead, unless the stream has moved on since: then read again."""
        cursor, page = self._subscription.take_page() or (None, None)
        if cursor is None or page is None:
            return []
        if self._progress.sent.get(cursor.scope) != cursor:
            self._subscription.dirty.add(cursor.scope)
            return []
        return self._page_events(page)

    def _page_events(self, page: FeedPage) -> list[StreamEvent]:
        progress, scope = self._progress, page.state.scope
        progress.inputs_changed = progress.inputs_changed or progress.states[scope] != page.state
        progress.states[scope] = page.state
        if page.reset:
            progress.move(page.state.cursor)
            progress.shown.discard(scope)
            return [Reset(page.state.cursor, self._context.refetch_delay_s())]
        events: list[StreamEvent] = []
        if page.changes:
            events.append(ChangesSent(page.changes))
            self._record_changes(page.changes)
            progress.shown.add(scope)
        progress.move(page.next)
        if page.more:
            self._subscription.dirty.add(scope)
        return events

    def _record_changes(self, changes: Sequence[Change]) -> None:
        """Record the staleness of changes sent to a device, except of those it missed before the stream opened."""
        request = self._request
        if request.device.device_id:
            opened_at = self._progress.opened_at
            instants = [change.changed_at.timestamp() for change in changes if change.changed_at > opened_at]
            now = self._clock.now().timestamp()
            self._recorders.hints.record_streamed_changes(request.device.app_id, now, instants)

    async def _refresh_members(self, *, opening: bool) -> None:
        """Read the user's memberships, leave and join scopes accordingly. Raises DependencyDown."""
        request, progress = self._request, self._progress
        app_id, user_id = request.device.app_id, request.user_id
        states, more_scopes = await self._reader.member_scopes(app_id, user_id)
        progress.inputs_changed = progress.inputs_changed or progress.more_scopes != more_scopes
        progress.more_scopes = more_scopes
        gone = list(progress.sent.keys() - {state.scope for state in states})
        if progress.more_scopes:
            # The list has only those of very many that changed last: scopes beyond it may still be the user's.
            still = await self._reader.heads(app_id, user_id, gone)
            gone = [scope for scope, state in zip(gone, still, strict=True) if state is None]
        for scope in gone:
            self._leave(scope)
        room = max(0, _MAX_FOLLOWED - len(progress.sent))
        joined = [state for state in states if state.scope not in progress.sent][:room]
        starts: dict[str, int] = {}
        if joined and not opening:
            # Changes published between the join and this read are news to the stream.
            names = [state.scope for state in joined]
            starts = await self._reader.join_sequences(app_id, user_id, names, _LONGEST_TRANSACTION_S)
        for state in joined:
            self._start_scope(state, None)
            progress.move(state.cursor._replace(sequence=starts.get(state.scope, state.head)))
        self._hub.follow(self._subscription, progress.sent)
        self._subscription.dirty |= starts.keys()

    def _leave(self, scope: str) -> None:
        self._progress.leave(scope)
        self._hub.follow(self._subscription, self._progress.sent)

    def _hint(self) -> Hint:
        request, progress = self._request, self._progress
        states, hints = list(progress.states.values()), self._context.hints
        return hints.hint(request.device.app_id, states, request.activity, more_scopes=progress.more_scopes)

    def _checkpoint(self, hint: Hint, lifetime: Lifetime) -> Checkpoint:
        return Checkpoint(tuple(self._progress.sent.values()), hint, lifetime.token_remaining_s)

    def _record_cursors(self) -> None:
        cursors = self._progress.take_unrecorded()
        if self._request.device.device_id:
            self._recorders.cursors.record_shown(self._request.device, cursors)


def _differs(hint: Hint, before: Hint | None) -> bool:
    """Return True if a hint differs enough from the one sent last to send it."""
    if before is None:
        return True
    return not 1 / _MIN_HINT_RATIO < hint.poll_interval_s / before.poll_interval_s < _MIN_HINT_RATIO
