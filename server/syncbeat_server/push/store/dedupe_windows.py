"""SQL of `dedupe_windows`: open, trail, close, cancel, forget. No other module writes the table.

A window lets one delivery per device and dedupe key through. Of those that it suppresses, the newest may trail: it is
sent when the window ends. Every statement locks windows in the order of their primary key, after any deliveries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from syncbeat_server.push.model import NewNotification
from syncbeat_server.push.policy.transitions import Event
from syncbeat_server.push.store.state_sql import WAITING, with_reason
from syncbeat_server.push.store.targets import TARGETED, columns
from syncbeat_server.storage.postgres.database import Connection, Row
from syncbeat_server.storage.retention import DeletedBatch, delete_oldest, delete_oldest_sql

WindowKey = tuple[str, str, str, str, str]
"""App, user, device, dedupe key, scope."""

# True of a window `w` that suppresses nothing. Deduping lets one delivery through: if that one ended before it was
# sent, its window does not count. A scheduled delivery opens its window when it is due; one that an older server
# scheduled suppresses nothing until then.
# A function, so that a statement that finds no window open does not pay for planning it.
IS_FREE = """(w.trailed_by IS NULL AND (w.window_until <= syncbeat_now()
    OR syncbeat_unsent(w.app_id, w.opened_by, w.user_id, w.device_id, w.scope)))"""

# A part of the statement that inserts deliveries, after `target`: opens the windows of the devices, or finds them open.
# Several notifications for one window in a batch count as if they came one by one: the first may open it, the second
# may trail, and the window keeps the cursor of the last.
OPEN_OR_TRAIL = f"""claim AS (
    INSERT INTO dedupe_windows AS w (app_id, user_id, device_id, dedupe_key, scope, trails, opened_by, trailed_by,
                                     epoch, sequence, window_until, duration)
    SELECT DISTINCT ON (app_id, user_id, device_id, dedupe_key, scope)
           app_id, user_id, device_id, dedupe_key, scope, trails, notification_id,
           CASE WHEN trails THEN lead(notification_id) OVER same END,
           last_value(epoch) OVER same, last_value(sequence) OVER same,
           syncbeat_now() + make_interval(secs => window_s),
           make_interval(secs => last_value(window_s) OVER same)
    FROM target WHERE dedupe_key <> '' AND barred = ''
    WINDOW same AS (PARTITION BY app_id, user_id, device_id, dedupe_key, scope ORDER BY i
                    ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING)
    ORDER BY app_id, user_id, device_id, dedupe_key, scope, i
    ON CONFLICT (app_id, user_id, device_id, dedupe_key, scope) DO UPDATE SET
        opened_by = CASE WHEN {IS_FREE} THEN excluded.opened_by ELSE w.opened_by END,
        trailed_by = CASE WHEN {IS_FREE} THEN excluded.trailed_by
                          WHEN w.trails THEN coalesce(w.trailed_by, excluded.opened_by) END,
        window_until = CASE WHEN {IS_FREE} THEN excluded.window_until ELSE w.window_until END,
        duration = excluded.duration, epoch = excluded.epoch, sequence = excluded.sequence
    RETURNING app_id, user_id, device_id, dedupe_key, scope, opened_by, trailed_by, window_until
)"""

# A window that does not exist yet is written as one that is over. Those of barred devices are locked with the others,
# because the bar may be lifted before the deliveries are written.
_LOCK = f"""{TARGETED}
, locked AS (
    INSERT INTO dedupe_windows AS w (app_id, user_id, device_id, dedupe_key, scope, trails, opened_by, window_until,
                                     duration)
    SELECT DISTINCT ON (app_id, user_id, device_id, dedupe_key, scope)
           app_id, user_id, device_id, dedupe_key, scope, trails, notification_id, 'epoch',
           make_interval(secs => window_s)
    FROM target WHERE dedupe_key <> ''
    ORDER BY app_id, user_id, device_id, dedupe_key, scope
    ON CONFLICT (app_id, user_id, device_id, dedupe_key, scope) DO UPDATE SET duration = w.duration WHERE false)
SELECT i, app_id, user_id, device_id, dedupe_key, scope, epoch, sequence, barred
FROM target ORDER BY i, user_id, device_id, scope
"""


@dataclass(frozen=True, slots=True)
class AlertWindow:
    """State of a window of an alert: True if it suppresses nothing, its end, its new opener and the one that trails.

    `epoch` and `sequence` are the cursor shown by the opener.
    """

    free: bool
    until: datetime
    opened_by: str | None = None
    trailed_by: str | None = None
    duration: timedelta = timedelta()
    epoch: str | None = None
    sequence: int | None = None


async def lock_targeted(conn: Connection, notifications: Sequence[NewNotification]) -> Sequence[Row]:
    """Lock the windows of all devices that the notifications target, creating those that do not exist.

    Returns the targets: one row for each notification (`i`, from 1 on), device and scope, in that order.
    """
    return await conn.fetch(_LOCK, *columns(notifications))


async def read_alert_windows(
    conn: Connection, keys: Sequence[WindowKey]
) -> tuple[dict[WindowKey, AlertWindow], datetime]:
    """Return the windows with these keys, which are locked, and the database's time."""
    rows = await conn.fetch(
        f"""SELECT w.app_id, w.user_id, w.device_id, w.dedupe_key, w.scope, w.window_until, {IS_FREE} AS free,
                  syncbeat_now() AS now
           FROM dedupe_windows w
           JOIN unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[])
                AS k (app_id, user_id, device_id, dedupe_key, scope)
                USING (app_id, user_id, device_id, dedupe_key, scope)""",
        *zip(*keys, strict=True),
    )
    return {window_key(row): AlertWindow(row["free"], row["window_until"]) for row in rows}, rows[0]["now"]


async def write_alert_windows(conn: Connection, windows: Mapping[WindowKey, AlertWindow]) -> None:
    """Open windows, or let alerts trail them. They are locked."""
    rows = [
        (*key, w.opened_by, w.trailed_by, w.until if w.opened_by else None, w.duration, w.epoch, w.sequence)
        for key, w in windows.items()
    ]
    await conn.execute(
        """UPDATE dedupe_windows w SET
               opened_by = coalesce(k.opened_by, w.opened_by), trailed_by = k.trailed_by,
               window_until = coalesce(k.window_until, w.window_until), duration = k.duration,
               epoch = coalesce(k.epoch, w.epoch), sequence = coalesce(k.sequence, w.sequence)
           FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::uuid[], $7::uuid[],
                       $8::timestamptz[], $9::interval[], $10::text[], $11::bigint[])
                AS k (app_id, user_id, device_id, dedupe_key, scope, opened_by, trailed_by, window_until, duration,
                      epoch, sequence)
           WHERE (w.app_id, w.user_id, w.device_id, w.dedupe_key, w.scope)
               = (k.app_id, k.user_id, k.device_id, k.dedupe_key, k.scope)""",
        *map(list, zip(*rows, strict=True)),
    )


async def lock_trailed(conn: Connection, lease_token: str, keys: Sequence[tuple[str, str]]) -> list[WindowKey]:
    """Lock the windows that claimed deliveries trail, in the order in which accepting locks them.

    Returns the keys of the windows of alerts, which have one for each of their scopes.
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
    return [window_key(row) for row in rows if row["of_alert"]]


async def close_trailed(conn: Connection, lease_token: str, keys: Sequence[tuple[str, str]]) -> None:
    """Let claimed wake-ups that trailed a window take its newest cursor and open a new window. The windows are locked.

    A device that has seen that cursor already gets no push, so its new window ends at once.
    """
    await conn.execute(
        f"""WITH due AS (
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
           UPDATE deliveries d SET epoch = closed.epoch, sequence = closed.sequence,
                  reason = {with_reason(Event.CLOSE_WINDOW)}
           FROM closed WHERE (d.app_id, d.delivery_id) = (closed.app_id, closed.delivery_id)""",
        lease_token,
        *_columns(keys),
    )


async def close_alerts(
    conn: Connection, lease_token: str, keys: Sequence[tuple[str, str]], locked: Sequence[WindowKey]
) -> None:
    """Let each claimed alert that is the last of a window open a new window of its scopes; mark the others MERGED.

    Windows that are not among the `locked` ones were created since, and stay as they are.
    """
    await conn.execute(
        f"""WITH own AS (
               SELECT d.app_id, d.delivery_id, d.user_id, d.device_id, d.notification_id,
                      'ALERT:' || n.dedupe_key AS dedupe_key, shown.scope, shown.place ->> 0 AS epoch,
                      (shown.place ->> 1)::bigint AS sequence
               FROM unnest($2::text[], $3::uuid[]) AS k (app_id, delivery_id)
               JOIN deliveries d USING (app_id, delivery_id) JOIN notifications n USING (app_id, notification_id)
               CROSS JOIN LATERAL jsonb_each(d.cursors) AS shown (scope, place)
               WHERE d.lease_token = $1 AND d.reason = 'TRAILING' AND d.cursors IS NOT NULL
           ), found AS (
               -- If the last alert of a window was cancelled, none trails it. Then the newest of those claimed takes
               -- its place, unless one that shows as much has passed meanwhile.
               SELECT own.*, CASE WHEN w.trailed_by IS NOT NULL THEN w.trailed_by <> own.notification_id
                                  ELSE w.epoch = own.epoch AND w.sequence >= own.sequence
                                       OR row_number() OVER (
                                           PARTITION BY app_id, user_id, device_id, dedupe_key, scope
                                           ORDER BY own.sequence DESC) > 1 END AS overtaken
               FROM own LEFT JOIN dedupe_windows w USING (app_id, user_id, device_id, dedupe_key, scope)
           ), verdict AS (
               SELECT app_id, delivery_id, bool_and(coalesce(overtaken, false)) AS superseded FROM found GROUP BY 1, 2
           ), opened AS (
               UPDATE dedupe_windows w SET opened_by = f.notification_id, trailed_by = NULL, epoch = f.epoch,
                      sequence = f.sequence, window_until = syncbeat_now() + w.duration
               FROM found f JOIN verdict v USING (app_id, delivery_id)
                    JOIN unnest($4::text[], $5::text[], $6::text[], $7::text[], $8::text[])
                         AS l (app_id, user_id, device_id, dedupe_key, scope)
                         USING (app_id, user_id, device_id, dedupe_key, scope)
               WHERE (w.app_id, w.user_id, w.device_id, w.dedupe_key, w.scope)
                   = (f.app_id, f.user_id, f.device_id, f.dedupe_key, f.scope)
                 -- A window that a later alert trails stays with that one.
                 AND NOT v.superseded AND coalesce(w.trailed_by = f.notification_id, true))
           UPDATE deliveries d SET reason = CASE WHEN v.superseded THEN {with_reason(Event.SUPERSEDE)}
                                                 ELSE {with_reason(Event.CLOSE_WINDOW)} END
           FROM verdict v WHERE (d.app_id, d.delivery_id) = (v.app_id, v.delivery_id)""",
        lease_token,
        *_columns(keys),
        *zip(*locked, strict=True),
    )


async def cancel(conn: Connection, app_id: str, notification_id: str, delivery_ids: Sequence[str]) -> None:
    """End the windows that a cancelled notification opened with unsent deliveries, and let it trail none any more.

    `delivery_ids` are the deliveries of the notification that are locked.
    """
    await conn.execute(
        f"""WITH own AS MATERIALIZED (
               SELECT w.app_id, w.user_id, w.device_id, w.dedupe_key, w.scope FROM dedupe_windows w
               JOIN deliveries d ON (d.app_id, d.user_id, d.device_id) = (w.app_id, w.user_id, w.device_id)
                                AND (w.scope = d.scope OR d.cursors ? w.scope)
               WHERE d.app_id = $1 AND d.delivery_id = ANY($3::uuid[]) AND d.state IN {WAITING}
                 AND $2 IN (w.opened_by, w.trailed_by)
               ORDER BY w.app_id, w.user_id, w.device_id, w.dedupe_key, w.scope FOR UPDATE OF w)
           UPDATE dedupe_windows w SET
               trailed_by = NULLIF(w.trailed_by, $2),
               window_until = CASE WHEN w.opened_by = $2 AND w.trailed_by IS NULL THEN syncbeat_now()
                                   ELSE w.window_until END
           FROM own WHERE (w.app_id, w.user_id, w.device_id, w.dedupe_key, w.scope)
                        = (own.app_id, own.user_id, own.device_id, own.dedupe_key, own.scope)""",
        app_id,
        notification_id,
        delivery_ids,
    )


async def delete_windows(conn: Connection, app_id: str, user_id: str, device_id: str | None) -> None:
    """Delete the windows of a device, or for None those of all devices of the user."""
    # Locked in the order in which accepting locks them.
    await conn.execute(
        """WITH own AS MATERIALIZED (
               SELECT device_id, dedupe_key, scope FROM dedupe_windows
               WHERE app_id = $1 AND user_id = $2 AND ($3::text IS NULL OR device_id = $3)
               ORDER BY device_id, dedupe_key, scope FOR UPDATE)
           DELETE FROM dedupe_windows w USING own
           WHERE w.app_id = $1 AND w.user_id = $2
             AND (w.device_id, w.dedupe_key, w.scope) = (own.device_id, own.dedupe_key, own.scope)""",
        app_id,
        user_id,
        device_id,
    )


FORGET = delete_oldest_sql(
    "dedupe_windows", "app_id, user_id, device_id, dedupe_key, scope", "window_until", "1 hour", "trailed_by IS NULL"
)


async def forget(conn: Connection, limit: int, since: datetime | None = None) -> DeletedBatch:
    """Delete up to `limit` windows that ended more than an hour ago and that nothing trails."""
    return await delete_oldest(conn, FORGET, limit, since)


def window_key(row: Row) -> WindowKey:
    """Return the key of a window from its columns."""
    return row["app_id"], row["user_id"], row["device_id"], row["dedupe_key"], row["scope"]


def _columns(keys: Sequence[tuple[str, str]]) -> tuple[list[str], list[str]]:
    return [app_id for app_id, _ in keys], [delivery_id for _, delivery_id in keys]
