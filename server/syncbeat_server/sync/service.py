"""Hints and the change feed for callers that ask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

from syncbeat_server.errors import AccessDenied, NotFound
from syncbeat_server.storage.batcher import Batcher
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.sync.feed.reader import FeedReader
from syncbeat_server.sync.hints.builder import Hints
from syncbeat_server.sync.model import Activity, Cursor, DeviceKey, FeedPage, Hint, Poll, Priority
from syncbeat_server.sync.store import changes, scopes


class SyncService:
    """GetHint, ReportActivity, BoostScope, ListChanges."""

    def __init__(
        self,
        database: Database,
        reader: FeedReader,
        hints: Hints,
        scope_changed: Callable[[str, str], None],
        reported: Callable[[DeviceKey, Activity], None],
    ) -> None:
        """`scope_changed` is told of each boost, `reported` of each report, after its commit: both end what is kept
        of it."""
        self._database = database
        self._reader = reader
        self._hints = hints
        self._scope_changed = scope_changed
        self._reported = reported
        self._reports: Batcher[tuple[DeviceKey, Activity], None] = Batcher(self._write_reports)

    def hint_at_once(self, poll: Poll) -> Hint | None:
        """As `hint`, where what it is made of is in memory; None: it is not."""
        return self._hints.polled_at_once(poll)

    async def hint(self, poll: Poll, *, is_user: bool) -> Hint:
        """When this device should ask again, and whether any of its scopes is ahead of its cursors.

        Raises:
            AccessDenied: the device is not the calling user's, or a cursor names a scope it is not a member of.
            NotFound: a service asks for a device that is not registered.
        """
        hint = await self._hints.polled(poll)
        if hint is None:
            if is_user:
                raise AccessDenied("not a registered device of this user")
            raise NotFound("this device is not registered")
        return hint

    async def report_activity(self, device: DeviceKey, activity: Activity, *, is_user: bool) -> Hint:
        """Remember what the device reports, and answer the hint that follows from it. Raises as `hint`."""
        await self._reports.submit((device, activity))
        hint = await self.hint(Poll(device, activity=activity), is_user=is_user)
        self._reported(device, activity)
        return hint

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
        return page, await self._hints.listed(app_id, device, cursor, page)

    async def _write_reports(self, reports: Sequence[tuple[DeviceKey, Activity]]) -> Sequence[None]:
        async with self._database.transaction() as conn:
            await changes.report_activity(conn, reports)
        return [None] * len(reports)
