"""Lists the audit log, and records changes of the apps' configuration that no call tells of."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from syncbeat_server.audit.model import DEPLOYMENT, AuditAction, AuditEntry, AuditFilter, EntryPlace, app_subject
from syncbeat_server.audit.record import record
from syncbeat_server.audit.store import entries
from syncbeat_server.storage.postgres.database import Database


class AuditService:
    """Lists entries for operators."""

    def __init__(self, database: Database, apps: Callable[[], Collection[str]]) -> None:
        """`apps` returns the apps that are configured."""
        self._database = database
        self._apps = apps

    async def entries_of_app(
        self, app_id: str, allowed: Collection[str], wanted: AuditFilter, after: EntryPlace | None, limit: int
    ) -> list[AuditEntry]:
        """Return up to `limit` entries of an app after a place, newest first.

        Who may act for all apps (`allowed`) also gets those of the deployment. Raises DependencyDown.
        """
        apps = [app_id, DEPLOYMENT] if set(self._apps()) <= set(allowed) else [app_id]
        async with self._database.connection() as conn:
            return await entries.list_entries(conn, apps, wanted, after, limit)

    async def all_entries(
        self, app_id: str | None, wanted: AuditFilter, after: EntryPlace | None, limit: int
    ) -> list[AuditEntry]:
        """Return up to `limit` entries of an app, or of all with those of the deployment. Raises DependencyDown."""
        async with self._database.connection() as conn:
            return await entries.list_entries(conn, None if app_id is None else [app_id], wanted, after, limit)


async def record_configuration(
    database: Database, digests: Mapping[str, str], changed: Mapping[str, str] | None = None
) -> None:
    """Record apps that were added, changed or removed since the log told of them last.

    `digests` has a digest of each configured app's settings; `changed` names the settings that changed, where that is
    known. Of several processes that see the same change the first one records it. Raises DependencyDown.
    """
    async with database.transaction() as conn:
        await entries.lock_configuration(conn)
        seen = await entries.seen_apps(conn)
        for app_id, digest in digests.items():
            last = seen.get(app_id)
            if last is None or last.action == AuditAction.APP_REMOVED:
                await record(conn, app_id, AuditAction.APP_ADDED, app_subject(app_id), settings=digest)
            elif last.settings != digest:
                names = {"changed": changed[app_id]} if changed and app_id in changed else {}
                await record(conn, app_id, AuditAction.APP_CHANGED, app_subject(app_id), settings=digest, **names)
        for app_id, last in seen.items():
            if app_id not in digests and last.action != AuditAction.APP_REMOVED:
                await record(conn, app_id, AuditAction.APP_REMOVED, app_subject(app_id))
