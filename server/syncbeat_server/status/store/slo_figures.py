"""SQL of the figures that operators enter."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from syncbeat_server.status.model import Figure
from syncbeat_server.storage.postgres.database import Connection
from syncbeat_server.storage.retention import DeletedBatch, delete_oldest, delete_oldest_sql

_DELETE_OLD = delete_oldest_sql("slo_figures", "name", "put_at", "31 days")


async def put(conn: Connection, name: str, value: float) -> None:
    """Write the newest value of a figure."""
    await conn.execute(
        """INSERT INTO slo_figures (name, value, put_at) VALUES ($1, $2, syncbeat_now())
           ON CONFLICT (name) DO UPDATE SET value = excluded.value, put_at = excluded.put_at""",
        name,
        value,
    )


async def read(conn: Connection, max_age_s: float, names: Sequence[str]) -> list[Figure]:
    """Return the figures of these names that were entered within so many seconds, by name."""
    rows = await conn.fetch(
        """SELECT name, value, put_at FROM slo_figures
           WHERE name = ANY($2::text[]) AND put_at > syncbeat_now() - make_interval(secs => $1) ORDER BY name""",
        max_age_s,
        names,
    )
    return [Figure(row["name"], row["value"], row["put_at"]) for row in rows]


async def delete_old(conn: Connection, limit: int, since: datetime | None) -> DeletedBatch:
    """Delete up to `limit` figures that are older than any that counts."""
    return await delete_oldest(conn, _DELETE_OLD, limit, since)
