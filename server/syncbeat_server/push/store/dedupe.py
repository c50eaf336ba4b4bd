"""SQL of dedupe windows: which hold nothing off, and how those end that something trails."""

from __future__ import annotations

from collections.abc import Sequence

from syncbeat_server.storage.postgres.database import Connection

# Of a window `w`. To dedupe is to let one through: what ended before it was sent holds off nothing. What is scheduled
# opens its window when it is due; what servers of before it was so had scheduled holds off nothing until then.
# A function, so that whoever finds no window open does not pay for planning it.
FREE = """(w.trailed_by IS NULL AND (w.window_until <= syncbeat_now()
    OR syncbeat_unsent(w.app_id, w.opened_by, w.user_id, w.device_id, w.scope)))"""


WindowKey = tuple[str, str, str, str, str]
"""App, user, device, dedupe key, scope."""


async def lock_trailed(conn: Connection, lease_token: str, keys: Sequence[tuple[str, str]]) -> list[WindowKey]:
    """Lock the windows that claimed deliveries wait for the end of, in the order in which accepting locks them.

    Returns those of alerts, which have one for each of their scopes.
    """
    rows = await conn.fetch(
        """SELECT d.cursors IS NOT NULL AS of_alert, w.app_id, w.user_id, w.device_id, w.dedupe_key, w.scope
           FROM unnest($2::text[], $3::uuid[]) AS k (app_id, delivery_id)
           JOIN deliveries d USING (app_id, delivery_id) JOIN notifications n USING (app_id, notification_id)
           JOIN dedupe_windows w ON (w.app_id, w.user_id, w.device_id, w.dedupe_key)
                                  = (d.app_id, d.user_id, d.device_id,
                                     CASE WHEN d.cursors IS NULL THEN n.kind ELSE 'ALERT' END || ':' || n.dedupe_key)
                                AND (w.scope = d.scope OR d.cursors ? w.scope)
           WHERE d.lease_token = $1 AND d.reason = 'TRAILING'
           ORDER BY w.app_id, w.user_id, w.device_id, w.dedupe_key, w.scope FOR UPDATE OF w""",
        lease_token,
        *_columns(keys),
    )
    return [
        (row["app_id"], row["user_id"], row["device_id"], row["dedupe_key"], row["scope"])
        for row in rows
        if row["of_alert"]
    ]


async def close_trailed(conn: Connection, lease_token: str, keys: Sequence[tuple[str, str]]) -> None:
    """Of wake-ups that were just claimed: trailing ones take their window's newest cursor, and start a new window.

    A device that has seen that cursor gets nothing, so its window ends at once. The windows are locked.
    """
    await conn.execute(
        """WITH due AS (
               SELECT w.app_id, w.user_id, w.device_id, w.dedupe_key, w.scope, d.delivery_id, d.notification_id
               FROM unnest($2::text[], $3::uuid[]) AS k (app_id, delivery_id)
               JOIN deliveries d ON (d.app_id, d.delivery_id) = (k.app_id, k.delivery_id)
               JOIN dedupe_windows w
                    ON (w.app_id, w.user_id, w.device_id, w.scope, w.trailed_by)
                     = (d.app_id, d.user_id, d.device_id, d.scope, d.notification_id)
               WHERE d.lease_token = $1 AND d.reason = 'TRAILING' AND d.cursors IS NULL
           ), closed AS (
               UPDATE dedupe_windows w SET
                   trailed_by = NULL, opened_by = due.notification_id,
                   window_until = syncbeat_now() + CASE WHEN EXISTS (
                       SELECT 1 FROM device_cursors c
                       WHERE (c.app_id, c.user_id, c.device_id, c.scope, c.epoch)
                           = (w.app_id, w.user_id, w.device_id, w.scope, w.epoch) AND c.sequence >= w.sequence
                   ) THEN interval '0' ELSE w.duration END
               FROM due
               WHERE (w.app_id, w.user_id, w.device_id, w.dedupe_key, w.scope)
                   = (due.app_id, due.user_id, due.device_id, due.dedupe_key, due.scope)
               RETURNING due.app_id, due.delivery_id, w.epoch, w.sequence)
           UPDATE deliveries d SET epoch = closed.epoch, sequence = closed.sequence, reason = ''
           FROM closed WHERE (d.app_id, d.delivery_id) = (closed.app_id, closed.delivery_id)""",
        lease_token,
        *_columns(keys),
    )


def _columns(keys: Sequence[tuple[str, str]]) -> tuple[list[str], list[str]]:
    return [app_id for app_id, _ in keys], [delivery_id for _, delivery_id in keys]
