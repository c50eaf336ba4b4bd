"""SQL that erases a deleted user: its deliveries, and the notifications that were for nobody else."""

from __future__ import annotations

from collections.abc import Sequence

from syncbeat_server.push.store.state_sql import WAITING
from syncbeat_server.storage.postgres.database import Connection

_LOCK_ATTEMPTS = 20


async def erase_user(conn: Connection, app_id: str, user_id: str) -> int:
    """Delete a user's deliveries, and the notifications that were for nobody else. Returns how many waited.

    The dedupe windows are deleted with the devices.
    """
    scheduled = await _erase_targets(conn, app_id, user_id)
    waited, notification_ids = await _erase_deliveries(conn, app_id, user_id)
    await _erase_undelivered(conn, app_id, [*notification_ids, *scheduled])
    return waited + len(scheduled)


async def _erase_targets(conn: Connection, app_id: str, user_id: str) -> list[str]:
    """Remove a user from the jobs that are still to be expanded. Returns the ids of their notifications."""
    rows = await conn.fetch(
        """WITH named AS MATERIALIZED (
               SELECT notification_id FROM expansions
               WHERE app_id = $1 AND targets @> jsonb_build_array(jsonb_build_object('user_id', $2::text))
               ORDER BY notification_id FOR UPDATE)
           UPDATE expansions e SET targets = coalesce((SELECT jsonb_agg(t) FROM jsonb_array_elements(e.targets) t
                                                       WHERE t ->> 'user_id' IS DISTINCT FROM $2), '[]')
           FROM named WHERE e.app_id = $1 AND e.notification_id = named.notification_id
           RETURNING e.notification_id::text AS notification_id""",
        app_id,
        user_id,
    )
    return [row["notification_id"] for row in rows]


async def _erase_deliveries(conn: Connection, app_id: str, user_id: str) -> tuple[int, list[str]]:
    """Delete a user's deliveries, in flight or not. Returns how many waited, and the ids of their notifications."""
    delivery_ids = await _lock_with_notifications(conn, app_id, user_id)
    rows = await conn.fetch(
        f"""WITH gone AS (
               DELETE FROM deliveries WHERE app_id = $1 AND delivery_id = ANY($2::uuid[])
               RETURNING state IN {WAITING} AS waited, notification_id
           ), counts AS (
               SELECT notification_id, count(*) AS n, count(*) FILTER (WHERE waited) AS waited FROM gone GROUP BY 1
           ), fewer AS (
               UPDATE notifications n SET accepted = n.accepted - counts.n
               FROM counts WHERE n.app_id = $1 AND n.notification_id = counts.notification_id)
           SELECT waited, notification_id::text AS notification_id FROM counts""",  # constants
        app_id,
        delivery_ids,
    )
    return sum(row["waited"] for row in rows), [row["notification_id"] for row in rows]


async def _lock_with_notifications(conn: Connection, app_id: str, user_id: str) -> list[str]:
    """Lock the notifications of a user's deliveries, then the deliveries, and return the ids of the deliveries.

    A delivery accepted between the two statements may belong to a notification that is not locked. To wait for that one
    now, with deliveries locked, could deadlock with a transaction that locks in order. So both locks are released and
    taken again.
    """
    attempt = 0
    while True:
        attempt += 1
        await conn.execute("SAVEPOINT none_locked")
        # Not their keys: a transaction that changes a delivery twice locks the key of its notification when it commits.
        locked = await conn.fetch(
            """SELECT notification_id FROM notifications WHERE app_id = $1 AND notification_id IN (
                   SELECT notification_id FROM deliveries WHERE app_id = $1 AND user_id = $2)
               ORDER BY notification_id FOR NO KEY UPDATE""",
            app_id,
            user_id,
        )
        deliveries = await conn.fetch(
            """SELECT delivery_id, notification_id FROM deliveries WHERE app_id = $1 AND user_id = $2
               ORDER BY delivery_id FOR UPDATE""",
            app_id,
            user_id,
        )
        of = {row["notification_id"] for row in locked}
        orderly = [row["delivery_id"] for row in deliveries if row["notification_id"] in of]
        if len(orderly) == len(deliveries) or attempt == _LOCK_ATTEMPTS:
            return orderly
        await conn.execute("ROLLBACK TO SAVEPOINT none_locked; RELEASE SAVEPOINT none_locked")


async def _erase_undelivered(conn: Connection, app_id: str, notification_ids: Sequence[str]) -> None:
    """Delete those of the notifications that have no delivery left."""
    # If two users are erased at once, the second waits here, and then sees that the first one's deliveries are gone.
    await conn.execute(
        """SELECT FROM notifications WHERE app_id = $1 AND notification_id = ANY($2::uuid[])
           ORDER BY notification_id FOR NO KEY UPDATE""",
        app_id,
        list(notification_ids),
    )
    await conn.execute(
        """DELETE FROM notifications n WHERE n.app_id = $1 AND n.notification_id = ANY($2::uuid[])
             AND NOT EXISTS (SELECT 1 FROM deliveries d WHERE d.app_id = n.app_id
                                                          AND d.notification_id = n.notification_id)
             AND NOT EXISTS (SELECT 1 FROM expansions e WHERE e.app_id = n.app_id AND e.targets <> '[]'
                                                          AND e.notification_id = n.notification_id)""",
        app_id,
        list(notification_ids),
    )
