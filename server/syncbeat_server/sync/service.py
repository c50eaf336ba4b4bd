"""Answers callers that ask for hints or for pages of the change feed, report activity, or boost a scope."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from syncbeat_server.directory.model import ChangeNotifier
from syncbeat_server.errors import AccessDenied, NotFound
from syncbeat_server.storage.batcher import Batcher, BatchRule
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.sync.feed.reader import FeedReader
from syncbeat_server.sync.hints.builder import HintBuilder
from syncbeat_server.sync.hints.writer_presence import WriterPresence
from syncbeat_server.sync.model import Activity, Cursor, DeviceKey, FeedPage, Hint, Poll, Priority
from syncbeat_server.sync.store import reported_activity, scopes


class SyncService:
    """Serves GetHint, ReportActivity, BoostScope and ListChanges."""

    def __init__(
        self,
        database: Database,
        reader: FeedReader,
        hints: HintBuilder,
        writers: WriterPresence,
        notifier: ChangeNotifier,
    ) -> None:
        """`notifier` hears of each boost as a change of its scope, and of each report as a change of its device."""
        self._database = database
        self._reader = reader
        self._hints = hints
        self._writers = writers
        self._notifier = notifier
        self._reports: Batcher[tuple[DeviceKey, Activity], None] = Batcher(
            self._write_reports, BatchRule(abandons=True)
        )

    def try_hint(self, poll: Poll) -> Hint | None:
        """Return the hint as `hint` does if its inputs are in memory, without awaiting anything; None if not."""
        return self._hints.try_for_poll(poll)

    async def hint(self, poll: Poll, *, is_user: bool) -> Hint:
        """Return the time at which a device should ask again, and if any of its scopes is ahead of its cursors.

        Raises:
            AccessDenied: the device is not the calling user's, or a cursor names a scope it is not a member of.
            NotFound: a service asks for a device that is not registered.
        """
        hint = await self._hints.for_poll(poll)
        if hint is None:
            if is_user:
                raise AccessDenied("not a registered device of this user")
            raise NotFound("this device is not registered")
        return hint

    async def report_activity(self, device: DeviceKey, activity: Activity, *, is_user: bool) -> Hint:
        """Store the activity that a device reports, and return the hint that follows from it. Raises as `hint`."""
        await self._reports.submit((device, activity))
        hint = await self.hint(Poll(device, activity=activity), is_user=is_user)
        self._notifier.devices_changed(device.app_id, [device.user_id])
        self._writers.record(device, activity)
        return hint

    async def boost(self, app_id: str, scope: str, priority: Priority, seconds: float) -> datetime:
        """Keep the hints of a scope's devices at a tier or faster; return the time at which that ends.

        Raises:
            NotFound: there is no such scope.
        """
        async with self._database.connection() as conn:
            ends = await scopes.boost(conn, app_id, scope, priority, seconds)
        if ends is None:
            raise NotFound("there is no such scope", scope=scope)
        self._notifier.scope_changed(app_id, scope)
        return ends

    async def list_changes(
        self, app_id: str, user_id: str | None, device: DeviceKey | None, cursor: Cursor, limit: int
    ) -> tuple[FeedPage, Hint]:
        """Return the page after a cursor, which `device` shows by that, and a hint.

        Raises:
            AccessDenied: `user_id` is not a member of the scope, existing or not.
            NotFound: a service asks for a scope that does not exist.
        """
        (page,) = await self._reader.pages(app_id, user_id, [cursor], limit)
        if page is None:
            if user_id is not None:
                raise AccessDenied("not a member of this scope", scope=cursor.scope)
            raise NotFound("there is no such scope", scope=cursor.scope)
        return page, await self._hints.for_page(app_id, device, cursor, page)

    async def _write_reports(self, reports: Sequence[tuple[DeviceKey, Activity]]) -> Sequence[None]:
        async with self._database.transaction() as conn:
            await reported_activity.report_activity(conn, reports)
        return [None] * len(reports)
