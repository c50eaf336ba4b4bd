"""SQL of the figures that operators see of the queue: how much waits, and if any delivery is missing."""

from __future__ import annotations

from datetime import timedelta

from syncbeat_server.push.model import DeliveryState, Lane, QueueDepth
from syncbeat_server.push.policy.transitions import Event
from syncbeat_server.push.store.state_sql import IN_FLIGHT, WAITING, becomes
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


async def queue_depth(conn: Connection, app_id: str, most: int, most_jobs: int) -> QueueDepth:
    """Return how many deliveries of an app wait or are in flight, reading `most` rows of each and one more at most.

    Of `most_jobs` notifications at most, those that are still expanded add their estimates. For operators, who may ask
    often: it walks the indexes of what is not done, which are short, and never those of what is.
    """
    rows = await conn.fetch(
        f"""WITH waiting AS (
                SELECT state FROM deliveries WHERE app_id = $1 AND state IN {WAITING} LIMIT $2::bigint + 1),
            flying AS (SELECT FROM deliveries WHERE app_id = $1 AND state = {IN_FLIGHT} LIMIT $2::bigint + 1),
            jobs AS (SELECT expected, written, due_at FROM expansions WHERE app_id = $1 LIMIT $3::bigint + 1),
            first AS (
                SELECT next.due_at FROM unnest($4::smallint[]) AS lane (priority)
                CROSS JOIN LATERAL (SELECT due_at FROM deliveries
                                    WHERE app_id = $1 AND priority = lane.priority AND state IN {WAITING}
                                    ORDER BY due_at LIMIT 1) next
                UNION ALL SELECT due_at FROM jobs)
            SELECT counted.state, counted.n,
                   (SELECT extract(epoch FROM syncbeat_now() - min(due_at))::float8 FROM first) AS late_s,
                   (SELECT count(*) FROM waiting) > $2 OR (SELECT count(*) FROM flying) > $2
                       OR (SELECT count(*) FROM jobs) > $3 AS truncated
            FROM (SELECT state, count(*) AS n FROM waiting GROUP BY 1
                  UNION ALL SELECT {IN_FLIGHT}, count(*) FROM flying
                  UNION ALL SELECT {becomes(Event.TRAIL)}, sum(greatest(0, expected - written)) FROM jobs) counted""",
        app_id,
        most,
        most_jobs,
        list(Lane),
    )
    counts: dict[DeliveryState, int] = {}
    for row in rows:
        if row["n"]:
            state = DeliveryState(row["state"])
            counts[state] = counts.get(state, 0) + int(row["n"])
    late_s, truncated = rows[0]["late_s"], rows[0]["truncated"]  # there is a row of those in flight always
    return QueueDepth(counts, late_s if late_s is not None and late_s > 0 else None, truncated)
