"""What becomes of a user's pushes, in the caller's transaction, when it is shut out or erased."""

from __future__ import annotations

from collections.abc import Sequence

from syncbeat_server.push.model import Reason
from syncbeat_server.push.store import notifications
from syncbeat_server.storage.postgres.database import Connection

_LOCK_ATTEMPTS = 20


async def cancel_of_user(conn: Connection, app_id: str, user_id: str) -> None:
    """Cancel whatever waits for a user's devices."""
    await notifications.cancel_waiting(conn, app_id, user_id, None, Reason.USER_DISABLED)
    await notifications.close_windows(conn, app_id, user_id, None)


async def erase(conn: Connection, app_id: str, user_id: str) -> int:
    """Forget a user's deliveries, and notifications that were for nobody else; how many waited. The dedupe windows
    go with the devices."""
    scheduled = await _erase_targets(conn, app_id, user_id)
    waited, notification_ids = await _erase_deliveries(conn, app_id, user_id)
    await _erase_undelivered(conn, app_id, [*notification_ids, *scheduled])
    return waited + len(scheduled)


async def _erase_targets(conn: Connection, app_id: str, user_id: str) -> list[str]:
    """Take a user out of what is to be expanded: the notifications that named it."""
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
    """Forget a user's deliveries, those under way too: how many waited, and the notifications they were of."""
    delivery_ids = await _lock_with_notifications(conn, app_id, user_id)
    rows = await conn.fetch(
        """WITH gone AS (
               DELETE FROM deliveries WHERE app_id = $1 AND delivery_id = ANY($2::uuid[])
               RETURNING state IN ('SCHEDULED', 'HELD', 'PENDING') AS waited, notification_id
           ), counts AS (
               SELECT notification_id, count(*) AS n, count(*) FILTER (WHERE waited) AS waited FROM gone GROUP BY 1
           ), fewer AS (
               UPDATE notifications n SET accepted = n.accepted - counts.n
               FROM counts WHERE n.app_id = $1 AND n.notification_id = counts.notification_id)
           SELECT waited, notification_id::text AS notification_id FROM counts""",
        app_id,
        delivery_ids,
    )
    return sum(row["waited"] for row in rows), [row["notification_id"] for row in rows]


async def _lock_with_notifications(conn: Connection, app_id: str, user_id: str) -> list[str]:
    """Lock the notifications of a user's deliveries, then those deliveries, and return the latter's ids.

    One that is accepted between the two statements is of a notification that is not locked: to wait for that now, with
    deliveries in hand, would be a deadlock with who locks in order. So both are given back and taken again.
    """
    attempt = 0
    while True:
        attempt += 1
        await conn.execute("SAVEPOINT none_locked")
        # Not their keys: who has claimed a delivery and changed it twice locks that of its notification at its commit.
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
    """Forget those of the notifications that have no delivery."""
    # Of two users who are erased at once, the second waits here and sees that the first one's deliveries are gone.
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
