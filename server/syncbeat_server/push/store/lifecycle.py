"""SQL of what callers and devices do to deliveries that were accepted: acknowledge, cancel, redrive, watch, forget."""

from __future__ import annotations

from datetime import datetime, timedelta

from syncbeat_server.push.model import NOW_S, DeliveryFilter, DeliveryState
from syncbeat_server.push.store import fanout
from syncbeat_server.storage.postgres.database import Connection
from syncbeat_server.storage.retention import BEGINNING, Batch, forget_oldest, oldest

REDRIVEN_AT_ONCE = 10_000
_DELIVERIES_OF_EACH = 10


async def app_secret(conn: Connection, app_id: str) -> bytes:
    """An app's secret of this database; made when it is asked for first."""
    found = await conn.fetchval("SELECT secret FROM app_secrets WHERE app_id = $1", app_id)
    if found is None:
        await conn.execute("INSERT INTO app_secrets (app_id) VALUES ($1) ON CONFLICT DO NOTHING", app_id)
        found = await conn.fetchval("SELECT secret FROM app_secrets WHERE app_id = $1", app_id)
    return bytes(found)


async def acknowledge(conn: Connection, app_id: str, delivery_id: str, *, opened: bool) -> DeliveryState | None:
    """Record that a device has a delivery; its state now, or None when it is not kept any more.

    Whatever we thought of it, the device knows better: one in flight, or given up as ambiguous, has arrived. What was
    never sent cannot have.
    """
    row = await conn.fetchrow(
        """UPDATE deliveries SET
               state = CASE WHEN attempts = 0 AND sent_at IS NULL THEN state
                            WHEN $3 OR state = 'OPENED' THEN 'OPENED' ELSE 'RECEIVED' END,
               reason = CASE WHEN attempts = 0 AND sent_at IS NULL THEN reason ELSE '' END,
               received_at = CASE WHEN attempts = 0 AND sent_at IS NULL THEN NULL
                                  ELSE coalesce(received_at, syncbeat_now()) END,
               opened_at = CASE WHEN $3 AND (attempts > 0 OR sent_at IS NOT NULL)
                                THEN coalesce(opened_at, syncbeat_now()) ELSE opened_at END,
               lease_token = CASE WHEN attempts = 0 THEN lease_token END,
               lease_until = CASE WHEN attempts = 0 THEN lease_until END,
               updated_at = syncbeat_now()
           WHERE app_id = $1 AND delivery_id = $2 AND NOT (state = 'OPENED' OR state = 'RECEIVED' AND NOT $3)
           RETURNING state""",
        app_id,
        delivery_id,
        opened,
    )
    if row is None:
        row = await conn.fetchrow(
            "SELECT state FROM deliveries WHERE app_id = $1 AND delivery_id = $2", app_id, delivery_id
        )
    return None if row is None else DeliveryState(row["state"])


async def cancel(conn: Connection, app_id: str, notification_id: str) -> int | None:
    """Cancel what is not sent yet of a notification; how many, or None when there is no such notification.

    One in flight counts as well: it is not tried again, and ends SENT where its attempt succeeds all the same.
    What it held off by its dedupe key may come again; what was to take the last place of a window gives it up. Wake-ups
    that were sent are not sent again.
    """
    known = await conn.fetchval(
        "SELECT true FROM notifications WHERE app_id = $1 AND notification_id = $2", app_id, notification_id
    )
    if known is None:
        return None
    # Before the deliveries are locked: what it writes is CANCELLED already, and counts once.
    unwritten = await fanout.call_off(conn, app_id, notification_id)
    # The deliveries first, as in claiming; the windows in the order in which accepting locks them.
    locked = await conn.fetch(
        """SELECT delivery_id FROM deliveries WHERE app_id = $1 AND notification_id = $2
             AND (state IN ('PENDING', 'HELD', 'SCHEDULED', 'IN_FLIGHT') OR answer_by IS NOT NULL)
           ORDER BY delivery_id FOR UPDATE""",
        app_id,
        notification_id,
    )
    delivery_ids = [row["delivery_id"] for row in locked]
    await conn.execute(
        """WITH own AS MATERIALIZED (
               SELECT w.app_id, w.user_id, w.device_id, w.dedupe_key, w.scope FROM dedupe_windows w
               JOIN deliveries d ON (d.app_id, d.user_id, d.device_id) = (w.app_id, w.user_id, w.device_id)
                                AND (w.scope = d.scope OR d.cursors ? w.scope)
               WHERE d.app_id = $1 AND d.delivery_id = ANY($3::uuid[]) AND d.state IN ('PENDING', 'HELD', 'SCHEDULED')
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
    rows = await conn.fetch(
        """UPDATE deliveries SET
               state = CASE WHEN state = 'IN_FLIGHT' THEN state ELSE 'CANCELLED' END, updated_at = syncbeat_now(),
               reason = CASE WHEN state = 'IN_FLIGHT' THEN reason ELSE '' END,
               called_back = CASE WHEN state = 'IN_FLIGHT' THEN '' END
           WHERE app_id = $1 AND delivery_id = ANY($2::uuid[])
             AND (state IN ('PENDING', 'HELD', 'SCHEDULED')
                  OR state = 'IN_FLIGHT' AND resends = 0 AND called_back IS NULL)
           RETURNING 1 AS cancelled""",
        app_id,
        delivery_ids,
    )
    await conn.execute(
        """UPDATE deliveries SET answer_by = NULL
           WHERE app_id = $1 AND delivery_id = ANY($2::uuid[]) AND answer_by IS NOT NULL""",
        app_id,
        delivery_ids,
    )
    return len(rows) + unwritten


async def redrive(conn: Connection, app_id: str, wanted: DeliveryFilter) -> int:
    """Make up to 10,000 DEAD deliveries PENDING again, the oldest first; how many. Their time to live starts anew."""
    rows = await conn.fetch(
        """WITH dead AS (
               SELECT app_id, delivery_id FROM deliveries
               WHERE app_id = $1 AND state = 'DEAD' AND ($2::uuid IS NULL OR notification_id = $2)
                 AND ($3::text IS NULL OR user_id = $3) AND ($4::text IS NULL OR device_id = $4)
               ORDER BY delivery_id LIMIT $5 FOR UPDATE)
           UPDATE deliveries d SET state = 'PENDING', reason = '', attempts = 0, moves = 0, first_claimed_at = NULL,
                  due_at = syncbeat_now(), updated_at = syncbeat_now(),
                  expires_at = syncbeat_now() + coalesce(nullif(n.expires_at - n.due_at, interval '0'),
                                                         make_interval(secs => $6))
           FROM dead JOIN deliveries own USING (app_id, delivery_id)
                JOIN notifications n USING (app_id, notification_id)
           WHERE (d.app_id, d.delivery_id) = (dead.app_id, dead.delivery_id)
           RETURNING 1 AS redriven""",
        app_id,
        wanted.notification_id or None,
        wanted.user_id or None,
        wanted.device_id or None,
        REDRIVEN_AT_ONCE,
        NOW_S,
    )
    return len(rows)


FORGET_DELIVERIES = """
    WITH old AS MATERIALIZED (
        SELECT n.app_id, n.notification_id, n.created_at FROM notifications n
        WHERE n.created_at >= $3
          AND n.created_at < syncbeat_now() - make_interval(secs => $1::float8 * 86400)
          AND n.expires_at < syncbeat_now() - make_interval(secs => $1::float8 * 86400)
          AND NOT EXISTS (SELECT 1 FROM deliveries d
                          WHERE (d.app_id, d.notification_id) = (n.app_id, n.notification_id)
                            AND d.state IN ('PENDING', 'HELD', 'SCHEDULED', 'IN_FLIGHT'))
        ORDER BY n.created_at LIMIT $2 FOR UPDATE SKIP LOCKED),
    ended AS MATERIALIZED (
        -- Who holds one locks others of other notifications: what waited for it here could be in a deadlock.
        SELECT d.app_id, d.delivery_id FROM old JOIN deliveries d USING (app_id, notification_id) LIMIT $4
        FOR UPDATE OF d SKIP LOCKED),
    gone AS (
        DELETE FROM deliveries d USING ended WHERE (d.app_id, d.delivery_id) = (ended.app_id, ended.delivery_id)
          AND d.state NOT IN ('PENDING', 'HELD', 'SCHEDULED', 'IN_FLIGHT')
        RETURNING 1)
    SELECT (SELECT count(*) FROM gone) AS gone, count(*) AS found, max(created_at) AS last,
           array_agg(app_id) AS app_ids, array_agg(notification_id) AS notification_ids FROM old"""


async def forget_notifications(conn: Connection, days: float, limit: int, since: datetime | None = None) -> Batch:
    """Delete up to `limit` notifications that ended longer than `days` ago, after their deliveries.

    Of those at most ten times as many, so that one with a million takes several batches instead of one long statement.
    """
    most = limit * _DELIVERIES_OF_EACH
    row = await conn.fetchrow(FORGET_DELIVERIES, days, limit, since or BEGINNING, most)
    if row is None or not row["found"]:
        return Batch(0, more=False, place=since)
    gone = await conn.fetch(
        """DELETE FROM notifications n USING unnest($1::text[], $2::uuid[]) AS k (app_id, notification_id)
           WHERE (n.app_id, n.notification_id) = (k.app_id, k.notification_id)
             AND NOT EXISTS (SELECT 1 FROM deliveries d
                             WHERE (d.app_id, d.notification_id) = (n.app_id, n.notification_id))
           RETURNING 1 AS gone""",
        row["app_ids"],
        row["notification_ids"],
    )
    count = row["gone"] + len(gone)
    if len(gone) < row["found"]:  # some have more deliveries than go at once
        return Batch(count, more=count > 0, place=since)
    return Batch(count, more=row["found"] == limit, place=row["last"])


FORGET_WINDOWS = oldest(
    "dedupe_windows", "app_id, user_id, device_id, dedupe_key, scope", "window_until", "1 hour", "trailed_by IS NULL"
)


async def forget_windows(conn: Connection, limit: int, since: datetime | None = None) -> Batch:
    """Delete up to `limit` dedupe windows that ended a while ago with nothing trailing."""
    return await forget_oldest(conn, FORGET_WINDOWS, limit, since)


async def unaccounted(conn: Connection, within: timedelta, limit: int) -> tuple[int, int]:
    """Of the newest notifications, none older than `within`: how many deliveries were looked at, and how many are
    accepted but in no state.

    Always 0 of the latter: a delivery is written with its notification and never taken away alone.
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


async def waiting(conn: Connection) -> dict[tuple[str, str], tuple[int, float]]:
    """By app and state of what is not ended: how many, and for how many seconds the oldest has been due.

    What is scheduled counts as it was estimated.
    """
    rows = await conn.fetch(
        """SELECT app_id, state, sum(n)::bigint AS n,
                  greatest(0, extract(epoch FROM syncbeat_now() - min(due_at)))::float8 AS oldest_s
           FROM (SELECT app_id, state, count(*) AS n, min(due_at) AS due_at FROM deliveries
                 WHERE state IN ('PENDING', 'HELD', 'SCHEDULED') GROUP BY 1, 2
                 UNION ALL
                 SELECT app_id, 'SCHEDULED', sum(greatest(0, expected - written)), min(due_at) FROM expansions
                 GROUP BY 1) waiting
           GROUP BY 1, 2"""
    )
    return {(row["app_id"], row["state"]): (row["n"], row["oldest_s"]) for row in rows}
