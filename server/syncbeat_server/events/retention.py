"""Deletes events and order heads that are kept no longer."""

from __future__ import annotations

from datetime import datetime

from syncbeat_server.events.store import old_events
from syncbeat_server.storage.postgres.database import Connection
from syncbeat_server.storage.retention import DeletedBatch, RetentionRule


def old_rows(keep_days: int) -> list[RetentionRule]:
    """Return the retention jobs of events, which are kept for `keep_days` from when they came first."""

    async def events(conn: Connection, limit: int, since: datetime | None) -> DeletedBatch:
        return await old_events.delete_events(conn, keep_days, limit, since)

    async def heads(conn: Connection, limit: int, since: datetime | None) -> DeletedBatch:
        return await old_events.delete_heads(conn, keep_days, limit, since)

    return [RetentionRule("events", events), RetentionRule("event_order_heads", heads)]
