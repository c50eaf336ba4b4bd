"""Tells and erases what apps that are configured no more left in the database, for one run of a command."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass

from syncbeat_server.audit.model import AuditAction, app_subject
from syncbeat_server.audit.record import record
from syncbeat_server.clock import SystemClock
from syncbeat_server.storage.app_erasure import AppErasure, Erased, app_tables, apps_with_rows, count_rows
from syncbeat_server.storage.postgres.database import Database, open_database
from syncbeat_server.storage.postgres.roles import require_restricted_login
from syncbeat_server.storage.schema_check import require_current_schema


@dataclass(frozen=True)
class AppRows:
    """Rows of one app, by table; each count is at most one more than `MOST_COUNTED`."""

    app_id: str
    configured: bool
    rows: dict[str, int]


class StoredApps:
    """Apps that have rows in the database. `configured` are those of the settings."""

    def __init__(self, database: Database, configured: Collection[str]) -> None:
        self._database = database
        self._configured = configured

    async def list(self) -> list[AppRows]:
        """Return every app that has rows, by name. Raises DependencyDown."""
        async with self._database.connection() as conn:
            tables = await app_tables(conn)
            names = {name for table in tables for name in await apps_with_rows(conn, table)}
        return [await self.rows_of(name) for name in sorted(names)]

    async def rows_of(self, app_id: str) -> AppRows:
        """Return the rows of one app, of the tables in which it has any. Raises DependencyDown."""
        async with self._database.connection() as conn:
            counts = {table.name: await count_rows(conn, table, app_id) for table in await app_tables(conn)}
        rows = {name: count for name, count in sorted(counts.items()) if count}
        return AppRows(app_id, app_id in self._configured, rows)

    async def erase(self, app_id: str, on_progress: Callable[[str, int], None]) -> Erased:
        """Delete all rows of an app, but those of the audit log, which says so first. Raises as `AppErasure.run`."""
        # An erasure takes many transactions: its entry is there before the first row goes.
        async with self._database.transaction() as conn:
            await record(conn, app_id, AuditAction.APP_ERASED, app_subject(app_id))
        return await AppErasure(self._database, SystemClock(), app_id, on_progress).run()


@asynccontextmanager
async def open_stored_apps(database_url: str, configured: Collection[str]) -> AsyncIterator[StoredApps]:
    """Open the database as the service does.

    Raises:
        ConfigurationError: the login is not the service's.
        DependencyDown: it does not answer.
        MigrationNeeded: it is of another version.
    """
    async with open_database(database_url, size=1, name="syncbeat-app") as database:
        async with database.connection() as conn:
            await require_restricted_login(conn)
            await require_current_schema(conn)
        yield StoredApps(database, configured)
