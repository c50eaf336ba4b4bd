"""Hints and the change feed for callers that ask."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import NamedTuple, Protocol

from syncbeat_server.clock import Clock
from syncbeat_server.errors import AccessDenied, NotFound, SyncbeatError
from syncbeat_server.storage.batching import Batcher
from syncbeat_server.storage.postgres import Database
from syncbeat_server.sync import policy, scopes, store
from syncbeat_server.sync.fetched import record_fetched
from syncbeat_server.sync.model import Activity, Change, Cursor, DeviceKey, FeedPage, Hint, Priority, ScopeState
from syncbeat_server.sync.policy import Situation, Tuning
from syncbeat_server.sync.recorder import Recorder
from syncbeat_server.sync.store import DeviceView
from syncbeat_server.sync.views import Views

_log = logging.getLogger(__name__)

_NOTHING_REPORTED = Activity()
_MAX_SEEN = 50_000
_SEEN_BATCH = 1_000
_SEEN_PAUSE_S = 0.02
_SEEN_RETRY_S = 1.0


class SeenRecorder:
    """Writes down which cursors devices have shown, and up to where their calls were answered, off the callers' path:
    the newest for each device and scope.

    What a crash loses of it costs at most a push that was not needed.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._shown = _Newest()
        self._fetched = _Newest()
        self._told = _Newest()
        self._noted = asyncio.Event()

    def note(self, device: DeviceKey, cursors: Sequence[Cursor]) -> None:
        """A device has shown that it knows these cursors."""
        if self._shown.take(device, cursors):
            self._noted.set()

    def note_fetched(self, device: DeviceKey, cursors: Sequence[Cursor]) -> None:
        """A call of a device was answered with these cursors: it knows them, or asks again if that was lost."""
        if len(self._told) >= _MAX_SEEN:
            self._told.clear()
        # Who is told again what it does not show costs no statement each time.
        fresh = self._told.take(device, cursors)
        if self._fetched.take(device, fresh):
            self._noted.set()

    async def run(self) -> None:
        """Write what is noted, for ever."""
        while True:
            await self._noted.wait()
            self._noted.clear()
            try:
                await self.flush()
                await self._clock.sleep(_SEEN_PAUSE_S)
            except SyncbeatError as error:
                _log.warning("cursors not recorded yet", extra={"reason": error.reason})
                self._noted.set()
                await self._clock.sleep(_SEEN_RETRY_S)

    async def flush(self) -> None:
        """Write everything that is noted now."""
        for newest, write in ((self._shown, store.record_seen), (self._fetched, record_fetched)):
            while newest:
                batch = dict(itertools.islice(newest.items(), _SEEN_BATCH))
                async with self._database.connection() as conn:
                    await write(conn, [(device, cursor) for (device, _), cursor in batch.items()])
                for key, cursor in batch.items():
                    if newest.get(key) is cursor:
                        del newest[key]


class _Newest(dict[tuple[DeviceKey, str], Cursor]):
    """The newest cursor for each device and scope, of at most `_MAX_SEEN`."""

    def take(self, device: DeviceKey, cursors: Sequence[Cursor]) -> list[Cursor]:
        """Take in what is newer; what that was."""
        taken = []
        for cursor in cursors:
            if cursor.sequence is None or not cursor.epoch:
                continue
            key = device, cursor.scope
            known = self.get(key)
            if known is None and len(self) >= _MAX_SEEN:
                continue
            if known is None or known.epoch != cursor.epoch or (known.sequence or 0) < cursor.sequence:
                self[key] = cursor
                taken.append(cursor)
        return taken


class FeedReader:
    """Reads feeds for many callers at once. Access is checked on (user, scope) pairs in the same batch."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._pages: Batcher[tuple[str, str | None, Cursor, int], FeedPage | None] = Batcher(self._read_pages)
        self._members: Batcher[tuple[str, str | None, str], ScopeState | None] = Batcher(self._read_heads)

    async def pages(
        self, app_id: str, user_id: str | None, cursors: Sequence[Cursor], limit: int
    ) -> list[FeedPage | None]:
        """For each cursor its page; None: no such scope, or `user_id` is not a member (None: a service, sees all)."""
        return list(await asyncio.gather(*(self._pages.submit((app_id, user_id, cursor, limit)) for cursor in cursors)))

    async def heads(self, app_id: str, user_id: str | None, scopes: Sequence[str]) -> list[ScopeState | None]:
        """For each scope its state, or None as in `pages`."""
        return list(await asyncio.gather(*(self._members.submit((app_id, user_id, scope)) for scope in scopes)))

    async def member_scopes(self, app_id: str, user_id: str) -> list[ScopeState]:
        """The scopes of a user."""
        async with self._database.connection() as conn:
            return await store.member_scopes(conn, app_id, user_id)

    async def joined_starts(self, app_id: str, user_id: str, scopes: Sequence[str], margin_s: float) -> dict[str, int]:
        """Where a user who joined scopes begins to see them."""
        async with self._database.connection() as conn:
            return await store.joined_starts(conn, app_id, user_id, scopes, margin_s)

    async def starts(self, app_id: str, scopes: Sequence[str], since: datetime) -> list[tuple[ScopeState, int]]:
        """Where each scope stood at a moment."""
        async with self._database.connection() as conn:
            return await store.starts(conn, app_id, scopes, since)

    async def _read_heads(self, reads: Sequence[tuple[str, str | None, str]]) -> Sequence[ScopeState | None]:
        distinct = list(dict.fromkeys(reads))
        async with self._database.connection() as conn:
            found = dict(zip(distinct, await store.heads(conn, distinct), strict=True))
        return [found[read] for read in reads]

    async def _read_pages(self, reads: Sequence[tuple[str, str | None, Cursor, int]]) -> Sequence[FeedPage | None]:
        # Heads first, with the right to see them: a sequence is given out under the scope's lock, so whatever is at or
        # below a head that was read before is there to be read after; and what came later, the right may not cover.
        wanted = list(dict.fromkeys((app_id, user_id, cursor.scope) for app_id, user_id, cursor, _ in reads))
        async with self._database.connection() as conn:
            states = dict(zip(wanted, await store.heads(conn, wanted), strict=True))
            plans = [_plan(read, states[read[0], read[1], read[2].scope]) for read in reads]
            feeds = list(dict.fromkeys(plan.feed for plan in plans if plan is not None))
            changes = dict(zip(feeds, await store.changes_between(conn, feeds), strict=True))
        return [None if plan is None else _page(plan, changes[plan.feed]) for plan in plans]


class _Plan(NamedTuple):
    state: ScopeState
    feed: store.FeedRead
    reset: bool


def _plan(read: tuple[str, str | None, Cursor, int], state: ScopeState | None) -> _Plan | None:
    app_id, _, cursor, limit = read
    if state is None:
        return None
    after = cursor.sequence or 0
    reset = bool(cursor.epoch and cursor.epoch != state.epoch) or after > state.head
    feed = store.FeedRead(app_id, state.scope, state.epoch, 0 if reset else after, state.head, limit)
    return _Plan(state, feed, reset)


def _page(plan: _Plan, changes: tuple[Change, ...]) -> FeedPage:
    more = len(changes) == plan.feed.limit
    last = changes[-1].sequence if more else plan.state.head
    return FeedPage(plan.state, changes, last, more=more, reset=plan.reset)


class Paces(Protocol):
    """Moves intervals to moments at which few others come: `pacer.Pacer`, or `policy.pacing.Pacing` of one process."""

    def paced(self, interval_s: float, *, background: bool, now: float, floor_s: float = 0.0) -> float:
        """The interval to give to a device that will come by it."""
        ...

    def describe(self) -> str:
        """What pacing does now, for people."""
        ...


class SyncService:
    """GetHint, ReportActivity, ListChanges."""

    def __init__(
        self,
        database: Database,
        reader: FeedReader,
        views: Views,
        seen: SeenRecorder,
        clock: Clock,
        tuning: Callable[[str], Tuning],
        scope_changed: Callable[[str, str], None],
        reported: Callable[[DeviceKey, Activity], None],
        pacing: Paces,
        recorder: Recorder,
    ) -> None:
        """`tuning` knows by what each app's hints are decided, `pacing` to which moment each is moved.

        `scope_changed` is told of each boost, `reported` of each report, after its commit: both end what is kept of it.
        `recorder` counts what came of the hints.
        """
        self._pacing = pacing
        self._recorder = recorder
        self._reported = reported
        self._scope_changed = scope_changed
        self._tuning = tuning
        self._database = database
        self._reader = reader
        self._views = views
        self._seen = seen
        self._clock = clock
        self._reports: Batcher[tuple[DeviceKey, Activity], None] = Batcher(self._write_reports)

    async def hint(
        self,
        device: DeviceKey,
        cursors: Sequence[Cursor],
        activity: Activity | None,
        *,
        explain: bool,
        is_user: bool,
    ) -> Hint:
        """When this device should ask again, and whether any of its scopes is ahead of `cursors`.

        Raises:
            AccessDenied: the device is not the calling user's, or a cursor names a scope it is not a member of.
            NotFound: a service asks for a device that is not registered.
        """
        view = self._views.cached(device)
        if view is None or not _covers(view, cursors):
            view = await self._views.read(device)
        if view is None:
            if is_user:
                raise AccessDenied("not a registered device of this user")
            raise NotFound("this device is not registered")
        changed = self._compare(device, view, cursors)
        shown = activity or view.activity or _NOTHING_REPORTED
        now = self._clock.now()
        hint = self._paced(Situation(list(view.scopes.values()), shown), device.app_id, now, changed, explain)
        self._recorder.polled(device, now.timestamp(), hint, view.scopes, cursors)
        return hint._replace(explanation=f"{hint.explanation}; {self._pacing.describe()}") if explain else hint

    async def report_activity(self, device: DeviceKey, activity: Activity, *, is_user: bool) -> Hint:
        """Remember what the device reports, and answer the hint that follows from it. Raises as `hint`."""
        await self._reports.submit((device, activity))
        self._reported(device, activity)
        return await self.hint(device, (), activity, explain=False, is_user=is_user)

    async def boost(self, app_id: str, scope: str, priority: Priority, seconds: float) -> datetime:
        """Hold the hints of a scope's devices at a tier or faster; the answer is until when.

        Raises:
            NotFound: there is no such scope.
        """
        async with self._database.connection() as conn:
            ends = await scopes.boost(conn, app_id, scope, priority, seconds)
        if ends is None:
            raise NotFound("there is no such scope", scope=scope)
        self._scope_changed(app_id, scope)
        return ends

    async def list_changes(
        self, app_id: str, user_id: str | None, device: DeviceKey | None, cursor: Cursor, limit: int
    ) -> tuple[FeedPage, Hint]:
        """The page after a cursor, which `device` has shown then; and when to ask again.

        Raises:
            AccessDenied: `user_id` is not a member of the scope, whether it exists or not.
            NotFound: a service asks for a scope that does not exist.
        """
        (page,) = await self._reader.pages(app_id, user_id, [cursor], limit)
        if page is None:
            if user_id is not None:
                raise AccessDenied("not a member of this scope", scope=cursor.scope)
            raise NotFound("there is no such scope", scope=cursor.scope)
        now = self._clock.now()
        if device is not None:
            self._recorder.fetched(device, now.timestamp(), [change.changed_at.timestamp() for change in page.changes])
            self._seen.note_fetched(device, [page.next])
            if not page.reset:
                self._seen.note(device, [cursor])
        situation = Situation([page.state], _NOTHING_REPORTED)
        # A hint of one scope among those of the device, which will come by the one for all of them: nothing is booked.
        return page, policy.decide(situation, self._tuning(app_id), now, changed=page.more)

    def _paced(self, situation: Situation, app_id: str, now: datetime, changed: bool, explain: bool) -> Hint:
        tuning = self._tuning(app_id)

        def pace(interval_s: float, background: bool) -> float:
            return self._pacing.paced(
                interval_s, background=background, now=now.timestamp(), floor_s=tuning.bounds.floor_s
            )

        return policy.decide(situation, tuning, now, changed=changed, pace=pace, explain=explain)

    def _compare(self, device: DeviceKey, view: DeviceView, cursors: Sequence[Cursor]) -> bool:
        """Whether a scope is ahead of what the device shows. What that tells of the device is noted."""
        if not cursors:
            return any(state.head > 0 for state in view.scopes.values())
        ahead = self._ahead(device, view, cursors)
        if ahead:
            self._seen.note_fetched(device, ahead)
        return bool(ahead)

    def _ahead(self, device: DeviceKey, view: DeviceView, cursors: Sequence[Cursor]) -> list[Cursor]:
        ahead = []
        for cursor in cursors:
            scope, epoch, sequence = cursor
            state = view.scopes.get(scope)
            if state is None:
                raise AccessDenied("not a member of this scope", scope=scope)
            if sequence is None or epoch not in ("", state.epoch):
                ahead.append(state.cursor)
                continue
            if sequence < state.head:
                ahead.append(state.cursor)
            if epoch and sequence <= state.head and _is_news(view.seen.get(scope), cursor):
                view.seen[scope] = cursor
                self._seen.note(device, [cursor])
        return ahead

    async def _write_reports(self, reports: Sequence[tuple[DeviceKey, Activity]]) -> Sequence[None]:
        async with self._database.connection() as conn:
            await store.report_activity(conn, reports)
        return [None] * len(reports)


def _is_news(seen: Cursor | None, cursor: Cursor) -> bool:
    return seen is None or seen.epoch != cursor.epoch or (seen.sequence or 0) < (cursor.sequence or 0)


def _covers(view: DeviceView, cursors: Sequence[Cursor]) -> bool:
    """Whether a view knows whatever the device does: else it is older than that."""
    for scope, _, sequence in cursors:
        state = view.scopes.get(scope)
        if state is None or (sequence is not None and sequence > state.head):
            return False
    return True
