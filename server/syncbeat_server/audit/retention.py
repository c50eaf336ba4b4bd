"""Deletes entries that are kept no longer."""

from __future__ import annotations

from datetime import datetime

from syncbeat_server.audit.store import entries
from syncbeat_server.storage.postgres.database import Connection
from syncbeat_server.storage.retention import DeletedBatch, RetentionRule


def old_rows(keep_days: int) -> list[RetentionRule]:
    """Return the retention job of the audit log."""

    async def delete(conn: Connection, limit: int, since: datetime | None) -> DeletedBatch:
        return await entries.delete_old(conn, keep_days, limit, since)

    return [RetentionRule("audit_entries", delete, every_s=600.0)]
