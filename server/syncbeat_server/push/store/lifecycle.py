"""SQL of the events after acceptance that no worker causes: acknowledge, cancel, redrive, and forgetting old rows."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from syncbeat_server.push.model import NOW_OR_NEVER_TTL_S, DeliveryFilter, DeliveryState, Reason
from syncbeat_server.push.policy.transitions import Event, Guard, states_before
from syncbeat_server.push.store import dedupe_windows, fanout
from syncbeat_server.push.store.state_sql import IN_FLIGHT, UNFINISHED, WAITING, becomes, state_list, with_reason
from syncbeat_server.storage.postgres.database import Connection
from syncbeat_server.storage.retention import BEGINNING, DeletedBatch

MAX_REDRIVEN = 10_000
_DELIVERIES_PER_NOTIFICATION = 10
_RECEIVED, _OPENED = becomes(Event.RECEIVE, Guard.ATTEMPTED), becomes(Event.OPEN, Guard.ATTEMPTED)
_REDRIVEN = state_list(states_before(Event.REDRIVE))


class Receipt(NamedTuple):
    """State of a delivery after an acknowledgement, and the traceparent of its last recorded attempt; '' for none."""

    state: DeliveryState
    traceparent: str


async def acknowledge(conn: Connection, app_id: str, delivery_id: str, *, opened: bool) -> Receipt | None:
    """Record that a device received or opened a delivery. Returns what that left, or None if it is no longer stored.

    The device knows better than we do: a delivery that is in flight, or was given up as ambiguous, has arrived. One
    that was never sent cannot have, and stays as it is.
    """
    row = await conn.fetchrow(
        f"""UPDATE deliveries SET
               state = CASE WHEN attempts = 0 AND sent_at IS NULL THEN state
                            WHEN $3 OR state = {_OPENED} THEN {_OPENED} ELSE {_RECEIVED} END,
               reason = CASE WHEN attempts = 0 AND sent_at IS NULL THEN reason ELSE '' END,
               received_at = CASE WHEN attempts = 0 AND sent_at IS NULL THEN NULL
                                  ELSE coalesce(received_at, syncbeat_now()) END,
               opened_at = CASE WHEN $3 AND (attempts > 0 OR sent_at IS NOT NULL)
                                THEN coalesce(opened_at, syncbeat_now()) ELSE opened_at END,
               lease_token = CASE WHEN attempts = 0 THEN lease_token END,
               lease_until = CASE WHEN attempts = 0 THEN lease_until END,
               updated_at = syncbeat_now()
           WHERE app_id = $1 AND delivery_id = $2 AND NOT (state = {_OPENED} OR state = {_RECEIVED} AND NOT $3)
           RETURNING state, traceparent""",
        app_id,
        delivery_id,
        opened,
    )
    if row is None:
        row = await conn.fetchrow(
            "SELECT state, traceparent FROM deliveries WHERE app_id = $1 AND delivery_id = $2", app_id, delivery_id
        )
    return None if row is None else Receipt(DeliveryState(row["state"]), row["traceparent"] or "")


async def cancel(conn: Connection, app_id: str, notification_id: str) -> int | None:
    """Cancel the unsent deliveries of a notification, and return their number; None if there is no such notification.

    One in flight counts as well: it is not tried again, but is SENT if its attempt succeeds. What it suppressed by its
    dedupe key may come again, and it trails no window any more. Wake-ups that were sent are not sent again.
    """
    known = await conn.fetchval(
        "SELECT true FROM notifications WHERE app_id = $1 AND notification_id = $2", app_id, notification_id
    )
    if known is None:
        return None
    # Before the deliveries are locked: those that it writes are CANCELLED already, and must not count twice.
    unwritten = await fanout.cancel_unwritten(conn, app_id, notification_id)
    # The deliveries before the windows, as claiming locks them.
    locked = await conn.fetch(
        f"""SELECT delivery_id FROM deliveries WHERE app_id = $1 AND notification_id = $2
             AND (state IN {UNFINISHED} OR answer_by IS NOT NULL)
           ORDER BY delivery_id FOR UPDATE""",
        app_id,
        notification_id,
    )
    delivery_ids = [row["delivery_id"] for row in locked]
    await dedupe_windows.cancel(conn, app_id, notification_id, delivery_ids)
    rows = await conn.fetch(
        f"""UPDATE deliveries SET
               state = CASE WHEN state = {IN_FLIGHT} THEN state ELSE {becomes(Event.CANCEL)} END,
               reason = CASE WHEN state = {IN_FLIGHT} THEN reason ELSE {with_reason(Event.CANCEL)} END,
               called_back = CASE WHEN state = {IN_FLIGHT} THEN {with_reason(Event.CANCEL)} END,
               updated_at = syncbeat_now()
           WHERE app_id = $1 AND delivery_id = ANY($2::uuid[])
             AND (state IN {WAITING} OR state = {IN_FLIGHT} AND resends = 0 AND called_back IS NULL)
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


async def cancel_waiting(conn: Connection, app_id: str, user_id: str, device_id: str | None, reason: Reason) -> None:
    """Cancel what waits for a device, or for None for all devices of the user.

    A delivery in flight is not tried again: `reason` is kept for when its attempt ends.
    """
    await conn.execute(
        f"""WITH waiting AS MATERIALIZED (
               SELECT delivery_id FROM deliveries
               WHERE app_id = $1 AND user_id = $2 AND ($3::text IS NULL OR device_id = $3)
                 AND (state IN {WAITING} OR state = {IN_FLIGHT} AND resends = 0)
               ORDER BY delivery_id FOR UPDATE)
           UPDATE deliveries d SET
               state = CASE WHEN d.state = {IN_FLIGHT} THEN d.state ELSE {becomes(Event.WITHDRAW)} END,
               reason = CASE WHEN d.state = {IN_FLIGHT} THEN d.reason ELSE $4 END,
               called_back = CASE WHEN d.state = {IN_FLIGHT} THEN coalesce(d.called_back, $4) END,
               updated_at = syncbeat_now()
           FROM waiting w WHERE d.app_id = $1 AND d.delivery_id = w.delivery_id""",
        app_id,
        user_id,
        device_id,
        reason,
    )


async def redrive(conn: Connection, app_id: str, wanted: DeliveryFilter) -> int:
    """Make up to 10,000 DEAD deliveries PENDING again, the oldest first, and return their number.

    Their attempts and their time to live start anew.
    """
    rows = await conn.fetch(
        f"""WITH dead AS (
               SELECT app_id, delivery_id FROM deliveries
               WHERE app_id = $1 AND state IN {_REDRIVEN} AND ($2::uuid IS NULL OR notification_id = $2)
                 AND ($3::text IS NULL OR user_id = $3) AND ($4::text IS NULL OR device_id = $4)
               ORDER BY delivery_id LIMIT $5 FOR UPDATE)
           UPDATE deliveries d SET state = {becomes(Event.REDRIVE)}, reason = {with_reason(Event.REDRIVE)},
                  attempts = 0, moves = 0, first_claimed_at = NULL,
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
        MAX_REDRIVEN,
        NOW_OR_NEVER_TTL_S,
    )
    return len(rows)


FORGET_DELIVERIES = f"""
    WITH old AS MATERIALIZED (
        SELECT n.app_id, n.notification_id, n.created_at FROM notifications n
        WHERE n.created_at >= $3
          AND n.created_at < syncbeat_now() - make_interval(secs => $1::float8 * 86400)
          AND n.expires_at < syncbeat_now() - make_interval(secs => $1::float8 * 86400)
          AND NOT EXISTS (SELECT 1 FROM deliveries d
                          WHERE (d.app_id, d.notification_id) = (n.app_id, n.notification_id)
                            AND d.state IN {UNFINISHED})
        ORDER BY n.created_at LIMIT $2 FOR UPDATE SKIP LOCKED),
    ended AS MATERIALIZED (
        -- A transaction that has locked one locks others of other notifications: to wait for it could be a deadlock.
        SELECT d.app_id, d.delivery_id FROM old JOIN deliveries d USING (app_id, notification_id) LIMIT $4
        FOR UPDATE OF d SKIP LOCKED),
    gone AS (
        DELETE FROM deliveries d USING ended WHERE (d.app_id, d.delivery_id) = (ended.app_id, ended.delivery_id)
          AND d.state NOT IN {UNFINISHED}
        RETURNING 1)
    SELECT (SELECT count(*) FROM gone) AS gone, count(*) AS found, max(created_at) AS last,
           array_agg(app_id) AS app_ids, array_agg(notification_id) AS notification_ids FROM old"""


async def forget_notifications(
    conn: Connection, days: float, limit: int, since: datetime | None = None
) -> DeletedBatch:
    """Delete up to `limit` notifications that ended longer than `days` ago, after their deliveries.

    At most ten times as many deliveries are deleted, so that a notification with a million takes several batches
    instead of one long statement.
    """
    most = limit * _DELIVERIES_PER_NOTIFICATION
    row = await conn.fetchrow(FORGET_DELIVERIES, days, limit, since or BEGINNING, most)
    if row is None or not row["found"]:
        return DeletedBatch(0, more=False, place=since)
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
    if len(gone) < row["found"]:  # some have more deliveries than one batch deletes
        return DeletedBatch(count, more=count > 0, place=since)
    return DeletedBatch(count, more=row["found"] == limit, place=row["last"])
