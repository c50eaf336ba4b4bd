"""Deletes events and order heads that are kept no longer, by their keys and in short transactions."""

from __future__ import annotations

from datetime import datetime

from syncbeat_server.storage.postgres.database import Connection
from syncbeat_server.storage.retention import DeletedBatch, delete_oldest, delete_oldest_sql


async def delete_events(conn: Connection, keep_days: int, limit: int, since: datetime | None) -> DeletedBatch:
    """Delete up to `limit` events that came first longer ago than they are kept, but none that is still retried."""
    statement = delete_oldest_sql(
        "events", "app_id, source, event_id", "first_seen_at", f"{keep_days} days", "next_attempt_at IS NULL"
    )
    return await delete_oldest(conn, statement, limit, since)


async def delete_heads(conn: Connection, keep_days: int, limit: int, since: datetime | None) -> DeletedBatch:
    """Delete up to `limit` heads of orders that have not moved for longer than events are kept.

    A head tells the day of its last move and not the moment: it stays for a day more.
    """
    statement = delete_oldest_sql(
        "event_order_heads", "app_id, source, ordering_key", "moved_at", f"{keep_days + 1} days"
    )
    return await delete_oldest(conn, statement, limit, since)
