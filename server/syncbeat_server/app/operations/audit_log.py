"""Opens the audit log for one run of a command."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from syncbeat_server.audit.service import AuditService
from syncbeat_server.storage.postgres.database import open_database
from syncbeat_server.storage.postgres.roles import require_restricted_login
from syncbeat_server.storage.schema_check import require_current_schema


@asynccontextmanager
async def open_audit_log(database_url: str) -> AsyncIterator[AuditService]:
    """Open the database as the service does.

    Raises:
        ConfigurationError: the login is not the service's.
        DependencyDown: it does not answer.
        MigrationNeeded: it is of another version.
    """
    async with open_database(database_url, size=1, name="syncbeat-audit") as database:
        async with database.connection() as conn:
            await require_restricted_login(conn)
            await require_current_schema(conn)
        yield AuditService(database, frozenset)
