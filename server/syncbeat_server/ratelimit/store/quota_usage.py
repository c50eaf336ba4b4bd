"""SQL of the `quota_usage` table: what apps and principals have used of their monthly quotas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date

from syncbeat_server.ratelimit.model import QuotaKey
from syncbeat_server.storage.postgres.database import Connection
from syncbeat_server.storage.retention import DeletedBatch, delete_oldest, delete_oldest_sql

# The key of the advisory lock: "sb" and "qota" in ASCII.
_LOCK = (0x7362, 0x716F7461)
_DELETE_OLD = delete_oldest_sql("quota_usage", "app_id, name, subject, method_class, month", "month", "93 days")


async def read_usage(conn: Connection, keys: Sequence[QuotaKey]) -> list[int]:
    """Return what was used of each key, in order; 0 where nothing was."""
    rows = await conn.fetch(
        """SELECT coalesce(q.used, 0) AS used
           FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::date[]) WITH ORDINALITY
                AS k (app_id, subject, name, method_class, month, i)
           LEFT JOIN quota_usage q ON (q.app_id, q.name, q.subject, q.method_class, q.month)
                                    = (k.app_id, k.name, k.subject, k.method_class, k.month)
           ORDER BY k.i""",
        *_columns(keys),
    )
    return [row["used"] for row in rows]


async def add_usage(conn: Connection, used: Mapping[QuotaKey, int]) -> dict[QuotaKey, int]:
    """Add to what was used of each key, in the caller's transaction; return the new sums.

    Of a deleted user nothing is added, and the answer lacks its keys. The lock lets additions of all processes go on
    beside each other, but none beside `erase_usage`, which would miss a row that is being inserted.
    """
    await conn.execute("SELECT pg_advisory_xact_lock_shared($1, $2)", *_LOCK)
    rows = await conn.fetch(
        """INSERT INTO quota_usage AS q (app_id, subject, name, method_class, month, used, updated_at)
           SELECT k.app_id, k.subject, k.name, k.method_class, k.month, k.used, syncbeat_now()
           FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::date[], $6::bigint[])
                AS k (app_id, subject, name, method_class, month, used)
           WHERE NOT EXISTS (SELECT FROM users u
                             WHERE u.app_id = k.app_id AND k.name LIKE 'user:%' AND u.user_id = substr(k.name, 6)
                               AND u.deleted_at IS NOT NULL)
           ORDER BY k.app_id, k.name, k.subject, k.method_class, k.month
           ON CONFLICT (app_id, name, subject, method_class, month)
           DO UPDATE SET used = q.used + excluded.used, updated_at = excluded.updated_at
           RETURNING app_id, subject, name, method_class, month, used""",
        *_columns(list(used)),
        list(used.values()),
    )
    return {QuotaKey(*key): total for *key, total in (row.values() for row in rows)}


async def erase_usage(conn: Connection, app_id: str, user_id: str) -> None:
    """Delete what a user has used; last in its transaction, since additions wait for its end."""
    await conn.execute("SELECT pg_advisory_xact_lock($1, $2)", *_LOCK)
    await conn.execute("DELETE FROM quota_usage WHERE app_id = $1 AND name = 'user:' || $2", app_id, user_id)


async def delete_old(conn: Connection, limit: int, since: date | None) -> DeletedBatch:
    """Delete up to `limit` counts of months that ended two months ago or earlier."""
    return await delete_oldest(conn, _DELETE_OLD, limit, since)


def _columns(keys: Sequence[QuotaKey]) -> tuple[list[str | date], ...]:
    return tuple([key[column] for key in keys] for column in range(len(QuotaKey._fields)))
