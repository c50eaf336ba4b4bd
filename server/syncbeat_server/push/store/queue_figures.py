"""SQL of the figures that operators see of the queue: how much waits, and if any delivery is missing."""

from __future__ import annotations

from datetime import timedelta

from syncbeat_server.push.policy.transitions import Event
from syncbeat_server.push.store.state_sql import WAITING, becomes
from syncbeat_server.storage.postgres.database import Connection


async def count_unaccounted(conn: Connection, within: timedelta, limit: int) -> tuple[int, int]:
    """Return the number of deliveries of the newest notifications, and how many are missing of those accepted.

    Notifications older than `within` are left out. None is ever missing: a delivery is written with its notification
    and never deleted without it.
    """
    row = await conn.fetchrow(
        """SELECT coalesce(sum(found.n), 0) AS looked_at, coalesce(sum(abs(newest.accepted - found.n)), 0) AS missing
           FROM (SELECT app_id, notification_id, accepted FROM notifications
                 WHERE created_at > syncbeat_now() - $1::interval AND accepted IS NOT NULL
                 ORDER BY created_at DESC LIMIT $2) newest
           CROSS JOIN LATERAL (SELECT count(*) AS n FROM deliveries d
                               WHERE (d.app_id, d.notification_id) = (newest.app_id, newest.notification_id)) found""",
        within,
        limit,
    )
    return (0, 0) if row is None else (int(row["looked_at"]), int(row["missing"]))


async def count_waiting(conn: Connection) -> dict[tuple[str, str], tuple[int, float]]:
    """Return the count and the age in seconds of the oldest, by (app, state), of the deliveries that wait.

    Of scheduled notifications the estimates count.
    """
    rows = await conn.fetch(
        f"""SELECT app_id, state, sum(n)::bigint AS n,
                  greatest(0, extract(epoch FROM syncbeat_now() - min(due_at)))::float8 AS oldest_s
           FROM (SELECT app_id, state, count(*) AS n, min(due_at) AS due_at FROM deliveries
                 WHERE state IN {WAITING} GROUP BY 1, 2
                 UNION ALL
                 SELECT app_id, {becomes(Event.TRAIL)}, sum(greatest(0, expected - written)), min(due_at)
                 FROM expansions GROUP BY 1) waiting
           GROUP BY 1, 2"""
    )
    return {(row["app_id"], row["state"]): (row["n"], row["oldest_s"]) for row in rows}
