"""SQL of notifications and deliveries: accepting them. The queue's own SQL is in `queue.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

import orjson

from syncbeat_server.push.model import (
    Content,
    Delivery,
    DeliveryFilter,
    DeliveryState,
    Kind,
    Lane,
    NewNotification,
    Notification,
    Reason,
    content_fields,
)
from syncbeat_server.push.store.dedupe import FREE
from syncbeat_server.push.store.targets import TARGETED, columns
from syncbeat_server.storage.postgres.database import Connection, Row

# One statement, because a window is opened, or found open, with the delivery that does it. Its parts after the targets:
#   claim    the dedupe windows of those devices, opened or found open
#   verdict  what that makes of each device's delivery
#   written  the deliveries
# What is left to write of a notification whose targets are expanded later comes here page by page.
_INSERT_DELIVERIES = f"""{TARGETED}
, claim AS (
    -- Several calls for one window in this batch count as if they came one by one: the first may open it, the second
    -- may trail, and what the window keeps is the last one's.
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
        opened_by = CASE WHEN {FREE} THEN excluded.opened_by ELSE w.opened_by END,
        trailed_by = CASE WHEN {FREE} THEN excluded.trailed_by
                          WHEN w.trails THEN coalesce(w.trailed_by, excluded.opened_by) END,
        window_until = CASE WHEN {FREE} THEN excluded.window_until ELSE w.window_until END,
        duration = excluded.duration, epoch = excluded.epoch, sequence = excluded.sequence
    RETURNING app_id, user_id, device_id, dedupe_key, scope, opened_by, trailed_by, window_until
), verdict AS (
    SELECT t.*, c.window_until,
           CASE WHEN t.barred <> '' THEN t.barred
                WHEN c.opened_by IS NULL OR c.opened_by = t.notification_id THEN ''
                WHEN c.trailed_by = t.notification_id THEN 'TRAILING'
                WHEN t.trails THEN 'MERGED'
                ELSE 'DUPLICATE' END AS reason
    FROM target t LEFT JOIN claim c USING (app_id, user_id, device_id, dedupe_key, scope)
), written AS (
    INSERT INTO deliveries (app_id, notification_id, user_id, device_id, scope, epoch, sequence, state, reason,
                            priority, due_at, expires_at, created_at, updated_at, collapse_key, collapse_order)
    SELECT app_id, notification_id, user_id, device_id, scope, epoch, sequence,
           CASE WHEN reason IN ('NO_TOKEN', 'MUTED', 'MERGED', 'DUPLICATE') THEN 'SUPPRESSED'
                WHEN called_off THEN 'CANCELLED'
                WHEN reason = 'TRAILING' THEN 'SCHEDULED' ELSE 'PENDING' END,
           reason, priority, CASE WHEN reason = 'TRAILING' THEN window_until ELSE syncbeat_now() END,
           syncbeat_now() + make_interval(secs => ttl_s), syncbeat_now(), syncbeat_now(),
           collapse_key, CASE WHEN collapse_key <> '' THEN coalesce(was_due_at, syncbeat_now()) END
    FROM verdict
    RETURNING notification_id, state, reason
)
SELECT notification_id, state, reason, count(*) AS n FROM written GROUP BY 1, 2, 3
"""  # noqa: S608  # constants


async def insert_notifications(
    conn: Connection, notifications: Sequence[NewNotification], accepted: Mapping[str, int]
) -> None:
    """Write the notifications, whose deliveries were written before in the same transaction.

    `accepted` is how many each has; one that is not in it has an expansion that is still to write them.
    """
    await conn.execute(
        """INSERT INTO notifications (app_id, notification_id, kind, caller, content, type, dedupe_key, collapse_key,
                                      priority, critical, patient, accepted, texts, created_at, due_at, expires_at)
           SELECT app_id, notification_id, kind, caller, content::jsonb, type, dedupe_key, collapse_key, priority,
                  critical, patient, accepted, texts::jsonb, syncbeat_now(), due.at,
                  due.at + make_interval(secs => ttl_s)
           FROM unnest($1::text[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[],
                       $9::text[], $10::bool[], $11::float8[], $12::bool[], $13::int[], $14::timestamptz[],
                       $15::text[])
                AS k (app_id, notification_id, kind, caller, content, type, dedupe_key, collapse_key, priority,
                      critical, ttl_s, patient, accepted, due_at, texts),
                -- By the clock that will say that it is due.
                LATERAL (SELECT greatest(k.due_at, syncbeat_now()) AS at) due""",
        [n.app_id for n in notifications],
        [n.notification_id for n in notifications],
        [n.kind for n in notifications],
        [n.caller for n in notifications],
        [orjson.dumps(content_fields(n.content)).decode() for n in notifications],
        [n.type for n in notifications],
        [n.dedupe_key for n in notifications],
        [n.collapse_key for n in notifications],
        [n.lane.name for n in notifications],
        [n.critical for n in notifications],
        [n.ttl_s for n in notifications],
        [n.patient for n in notifications],
        [accepted.get(n.notification_id) for n in notifications],
        [n.due_at for n in notifications],
        [orjson.dumps(n.content.texts).decode() if n.content.texts else None for n in notifications],
    )


async def insert_deliveries(
    conn: Connection, notifications: Sequence[NewNotification]
) -> dict[str, Mapping[tuple[DeliveryState, Reason], int]]:
    """Write a delivery for every device that a notification targets; counts by (state, reason) of each notification.

    A dedupe window is opened, or found open, per (device, dedupe key) in the same statement. Who finds one open is
    suppressed; of sync triggers the first suppressed one trails: it is due when the window ends, and those that come
    after it only move its cursor.
    """
    rows = await conn.fetch(_INSERT_DELIVERIES, *columns(notifications))
    counts: dict[str, dict[tuple[DeliveryState, Reason], int]] = {n.notification_id: {} for n in notifications}
    for row in rows:
        counts[str(row["notification_id"])][DeliveryState(row["state"]), Reason(row["reason"])] = row["n"]
    return {**counts}


async def cancel_waiting(conn: Connection, app_id: str, user_id: str, device_id: str | None, reason: Reason) -> None:
    """Cancel what waits for a device, or for None all of a user's. What is in flight is not tried again."""
    await conn.execute(
        """WITH waiting AS MATERIALIZED (
               SELECT delivery_id FROM deliveries
               WHERE app_id = $1 AND user_id = $2 AND ($3::text IS NULL OR device_id = $3)
                 AND (state IN ('PENDING', 'HELD', 'SCHEDULED') OR state = 'IN_FLIGHT' AND resends = 0)
               ORDER BY delivery_id FOR UPDATE)
           UPDATE deliveries d SET
               state = CASE WHEN d.state = 'IN_FLIGHT' THEN d.state ELSE 'CANCELLED' END,
               reason = CASE WHEN d.state = 'IN_FLIGHT' THEN d.reason ELSE $4 END,
               called_back = CASE WHEN d.state = 'IN_FLIGHT' THEN coalesce(d.called_back, $4) END,
               updated_at = syncbeat_now()
           FROM waiting w WHERE d.app_id = $1 AND d.delivery_id = w.delivery_id""",
        app_id,
        user_id,
        device_id,
        reason,
    )


async def close_windows(conn: Connection, app_id: str, user_id: str, device_id: str | None) -> None:
    """Close the dedupe windows of a device, or for None all of a user's."""
    # In the order in which accepting locks them.
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


async def find_notification(conn: Connection, app_id: str, notification_id: str) -> Notification | None:
    """A notification with its counts; one that is not due yet counts as many SCHEDULED as it would come to."""
    row = await conn.fetchrow(
        """SELECT n.*, CASE WHEN e.due_at > syncbeat_now() THEN e.expected END AS scheduled
           FROM notifications n LEFT JOIN expansions e USING (app_id, notification_id)
           WHERE n.app_id = $1 AND n.notification_id = $2""",
        app_id,
        notification_id,
    )
    if row is None:
        return None
    counts = await conn.fetch(
        "SELECT state, count(*) AS n FROM deliveries WHERE app_id = $1 AND notification_id = $2 GROUP BY state",
        app_id,
        notification_id,
    )
    waits = {} if row["scheduled"] is None else {DeliveryState.SCHEDULED: row["scheduled"]}
    return Notification(
        notification_id=str(row["notification_id"]),
        kind=Kind(row["kind"]),
        content=Content(**orjson.loads(row["content"])),
        type=row["type"],
        dedupe_key=row["dedupe_key"],
        collapse_key=row["collapse_key"],
        lane=Lane[row["priority"]],
        created_at=row["created_at"],
        due_at=row["due_at"],
        expires_at=row["expires_at"],
        counts=waits | {DeliveryState(count["state"]): count["n"] for count in counts},
        expanding=row["accepted"] is None and row["scheduled"] is None,
        resolved=row["accepted"] is not None,
    )


async def list_deliveries(
    conn: Connection, app_id: str, wanted: DeliveryFilter, after: str | None, limit: int
) -> list[Delivery]:
    """Deliveries that fit the filter, oldest first, after a delivery id."""
    rows = await conn.fetch(
        """SELECT * FROM deliveries
           WHERE app_id = $1 AND ($2::uuid IS NULL OR notification_id = $2)
             AND ($3::text IS NULL OR user_id = $3) AND ($4::text IS NULL OR device_id = $4)
             AND ($5::text IS NULL OR state = $5) AND ($6::uuid IS NULL OR delivery_id > $6)
           ORDER BY delivery_id LIMIT $7""",
        app_id,
        wanted.notification_id or None,
        wanted.user_id or None,
        wanted.device_id or None,
        wanted.state,
        after,
        limit,
    )
    return [_delivery(row) for row in rows]


async def list_changed(
    conn: Connection,
    app_id: str,
    wanted: DeliveryFilter,
    after: tuple[datetime, str] | None,
    limit: int,
) -> list[Delivery]:
    """Deliveries of a notification or a user that changed after a (time, delivery id), in the order they did."""
    rows = await conn.fetch(
        """SELECT * FROM deliveries
           WHERE app_id = $1 AND ($2::uuid IS NULL OR notification_id = $2) AND ($3::text IS NULL OR user_id = $3)
             AND ($4::timestamptz IS NULL OR (updated_at, delivery_id) > ($4, $5::uuid))
           ORDER BY updated_at, delivery_id LIMIT $6""",
        app_id,
        wanted.notification_id or None,
        wanted.user_id or None,
        None if after is None else after[0],
        None if after is None else after[1],
        limit,
    )
    return [_delivery(row) for row in rows]


def _delivery(row: Row) -> Delivery:
    return Delivery(
        delivery_id=str(row["delivery_id"]),
        notification_id=str(row["notification_id"]),
        user_id=row["user_id"],
        device_id=row["device_id"],
        scope=row["scope"],
        state=DeliveryState(row["state"]),
        reason=Reason(row["reason"]),
        attempts=row["attempts"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        due_at=row["due_at"],
        expires_at=row["expires_at"],
        sent_at=row["sent_at"],
        received_at=row["received_at"],
        opened_at=row["opened_at"],
        ambiguous=row["ambiguous"],
    )
