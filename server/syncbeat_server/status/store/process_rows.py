"""SQL of the rows by which processes know of each other while Redis is away."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from syncbeat_server.storage.postgres.database import Connection
from syncbeat_server.storage.retention import DeletedBatch, delete_oldest, delete_oldest_sql

_DELETE_OLD = delete_oldest_sql("process_status", "process", "written_at", "10 minutes")


async def write_row(conn: Connection, process: str, record: str) -> None:
    """Write the record of a process."""
    await conn.execute(
        """INSERT INTO process_status (process, record, written_at) VALUES ($1, $2, syncbeat_now())
           ON CONFLICT (process) DO UPDATE SET record = excluded.record, written_at = excluded.written_at""",
        process,
        record,
    )


async def read_rows(conn: Connection, within_s: float, limit: int) -> Sequence[str]:
    """Return the newest records that were written within so many seconds, `limit` at most."""
    rows = await conn.fetch(
        """SELECT record FROM process_status WHERE written_at > syncbeat_now() - make_interval(secs => $1)
           ORDER BY written_at DESC LIMIT $2""",
        within_s,
        limit,
    )
    return [row["record"] for row in rows]


async def delete_row(conn: Connection, process: str) -> None:
    """Delete the record of a process that ends, or reaches Redis again."""
    await conn.execute("DELETE FROM process_status WHERE process = $1", process)


async def delete_old(conn: Connection, limit: int, since: datetime | None) -> DeletedBatch:
    """Delete up to `limit` records that are older than ten minutes: of processes that died while Redis was away."""
    return await delete_oldest(conn, _DELETE_OLD, limit, since)
