"""SQL of notifications and deliveries: writing them at acceptance, and reading them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

import orjson

from syncbeat_server.push.model import (
    ClaimedDelivery,
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
from syncbeat_server.push.policy.transitions import Event
from syncbeat_server.push.store.dedupe_windows import OPEN_OR_TRAIL
from syncbeat_server.push.store.state_sql import becomes
from syncbeat_server.push.store.targets import TARGETED, columns
from syncbeat_server.storage.postgres.database import Connection, Row

# One statement, because a window is opened, or found open, together with the delivery that does it. Its parts after the
# targets:
#   claim    the dedupe windows of those devices, opened or found open
#   verdict  the reason that each device's delivery gets from its window
#   written  the deliveries
# The deliveries of a notification that is expanded later are written by it too, page by page.
_INSERT_DELIVERIES = f"""{TARGETED}
, {OPEN_OR_TRAIL}, verdict AS (
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
           CASE WHEN reason IN ('NO_TOKEN', 'MUTED') THEN {becomes(Event.SUPPRESS)}
                WHEN reason IN ('MERGED', 'DUPLICATE') THEN {becomes(Event.DEDUPE)}
                WHEN called_off THEN {becomes(Event.ACCEPT_CANCELLED)}
                WHEN reason = 'TRAILING' THEN {becomes(Event.TRAIL)} ELSE {becomes(Event.ACCEPT)} END,
           reason, priority, CASE WHEN reason = 'TRAILING' THEN window_until ELSE syncbeat_now() END,
           syncbeat_now() + make_interval(secs => ttl_s), syncbeat_now(), syncbeat_now(),
           collapse_key, CASE WHEN collapse_key <> '' THEN coalesce(was_due_at, syncbeat_now()) END
    FROM verdict
    RETURNING notification_id, state, reason
)
SELECT notification_id, state, reason, count(*) AS n FROM written GROUP BY 1, 2, 3
"""


async def insert_notifications(
    conn: Connection, notifications: Sequence[NewNotification], accepted: Mapping[str, int]
) -> None:
    """Write the notifications, whose deliveries were written before in the same transaction.

    `accepted` has the number of deliveries by id; a notification that is not in it has an expansion that writes them
    later.
    """
    await conn.execute(
        """INSERT INTO notifications (app_id, notification_id, kind, caller, content, type, dedupe_key, collapse_key,
                                      priority, critical, patient, accepted, texts, created_at, due_at, expires_at,
                                      traceparent)
           SELECT app_id, notification_id, kind, caller, content::jsonb, type, dedupe_key, collapse_key, priority,
                  critical, patient, accepted, texts::jsonb, syncbeat_now(), due.at,
                  due.at + make_interval(secs => ttl_s), nullif(traceparent, '')
           FROM unnest($1::text[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[],
                       $9::text[], $10::bool[], $11::float8[], $12::bool[], $13::int[], $14::timestamptz[],
                       $15::text[], $16::text[])
                AS k (app_id, notification_id, kind, caller, content, type, dedupe_key, collapse_key, priority,
                      critical, ttl_s, patient, accepted, due_at, texts, traceparent),
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
        [n.traceparent for n in notifications],
    )


async def insert_deliveries(
    conn: Connection, notifications: Sequence[NewNotification]
) -> dict[str, Mapping[tuple[DeliveryState, Reason], int]]:
    """Write a delivery for every device that a notification targets, and return counts by (state, reason) of each.

    A dedupe window is opened, or found open, per (device, dedupe key) in the same statement. A delivery that finds it
    open is suppressed; of sync triggers the first suppressed one trails: it is due when the window ends, and later ones
    only move its cursor.
    """
    rows = await conn.fetch(_INSERT_DELIVERIES, *columns(notifications))
    counts: dict[str, dict[tuple[DeliveryState, Reason], int]] = {n.notification_id: {} for n in notifications}
    for row in rows:
        counts[str(row["notification_id"])][DeliveryState(row["state"]), Reason(row["reason"])] = row["n"]
    return {**counts}


async def stored_texts(conn: Connection, delivery: ClaimedDelivery) -> dict[str, tuple[str, str]]:
    """Return the texts of a template as rendered at acceptance: (title, body) by locale; empty if none were stored."""
    found = await conn.fetchval(
        "SELECT texts FROM notifications WHERE app_id = $1 AND notification_id = $2",
        delivery.app_id,
        delivery.notification_id,
    )
    return {} if found is None else {locale: (text[0], text[1]) for locale, text in orjson.loads(found).items()}


async def find_notification(conn: Connection, app_id: str, notification_id: str) -> Notification | None:
    """Return a notification with its counts, or None. One not yet due counts its estimate as SCHEDULED."""
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
    """Return the deliveries that fit the filter, oldest first, after a delivery id."""
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
    """Return deliveries of a notification or a user that changed after a (time, delivery id), in that order."""
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
