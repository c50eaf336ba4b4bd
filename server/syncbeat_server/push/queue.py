"""SQL of the delivery queue: claim, hold, finish, rescue. Every write of a worker is fenced by its lease token.

Time is the database's alone. No transaction is open while a provider is asked.
"""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from syncbeat_server.push.model import ClaimedDelivery, Content, Finished, Kind, Lane
from syncbeat_server.storage.postgres import Connection, Row


async def claim(conn: Connection, lease_token: str, lease_s: float, limit: int) -> list[str]:
    """Lease what is due, HIGH before NORMAL, oldest first; the ids. The attempt counts from here, so a crash counts."""
    rows = await conn.fetch(
        """WITH due AS (
               SELECT app_id, delivery_id FROM deliveries
               WHERE state IN ('PENDING', 'HELD', 'SCHEDULED') AND due_at <= syncbeat_now()
               ORDER BY priority, due_at LIMIT $3 FOR UPDATE SKIP LOCKED)
           UPDATE deliveries d SET state = 'IN_FLIGHT', attempts = d.attempts + 1, lease_token = $1,
                  lease_until = syncbeat_now() + make_interval(secs => $2), updated_at = syncbeat_now(),
                  first_claimed_at = coalesce(d.first_claimed_at, syncbeat_now())
           FROM due WHERE (d.app_id, d.delivery_id) = (due.app_id, due.delivery_id)
           RETURNING d.delivery_id""",
        lease_token,
        lease_s,
        limit,
    )
    return [str(row["delivery_id"]) for row in rows]


async def close_trailed_windows(conn: Connection, lease_token: str) -> None:
    """Of what was just claimed: trailing deliveries take their window's newest cursor, and start a new window.

    A device that has seen that cursor gets nothing, so its window ends at once. The windows are locked in the order in
    which accepting locks them.
    """
    await conn.execute(
        """WITH due AS (
               SELECT w.app_id, w.user_id, w.device_id, w.dedupe_key, w.scope, d.delivery_id, d.notification_id
               FROM deliveries d JOIN dedupe_windows w
                    ON (w.app_id, w.user_id, w.device_id, w.scope, w.trailed_by)
                     = (d.app_id, d.user_id, d.device_id, d.scope, d.notification_id)
               WHERE d.lease_token = $1 AND d.reason = 'TRAILING' AND d.state = 'IN_FLIGHT'
               ORDER BY w.app_id, w.user_id, w.device_id, w.dedupe_key, w.scope FOR UPDATE OF w
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
    )


async def claimed(conn: Connection, lease_token: str, delivery_ids: Sequence[str]) -> list[ClaimedDelivery]:
    """What was claimed under this token, with everything an attempt needs."""
    rows = await conn.fetch(
        """SELECT d.app_id, d.delivery_id, d.notification_id, d.user_id, d.device_id, d.scope, d.epoch, d.sequence,
                  d.attempts, d.priority, d.reason, v.platform, v.registration_token, v.token_registered_at,
                  n.kind, n.type, n.content, n.collapse_key,
                  extract(epoch FROM d.expires_at - syncbeat_now())::float8 AS ttl_s,
                  extract(epoch FROM syncbeat_now() - d.first_claimed_at)::float8 AS age_s,
                  EXISTS (SELECT 1 FROM device_cursors c
                          WHERE (c.app_id, c.user_id, c.device_id, c.scope, c.epoch)
                              = (d.app_id, d.user_id, d.device_id, d.scope, d.epoch)
                            AND c.sequence >= d.sequence) AS seen,
                  EXISTS (SELECT 1 FROM users u WHERE (u.app_id, u.user_id) = (d.app_id, d.user_id)
                            AND coalesce(u.disabled_at, u.deleted_at) IS NOT NULL) AS shut_out
           FROM deliveries d
           JOIN notifications n USING (app_id, notification_id)
           LEFT JOIN devices v USING (app_id, user_id, device_id)
           WHERE d.state = 'IN_FLIGHT' AND d.lease_token = $1 AND d.delivery_id = ANY($2::uuid[])
           ORDER BY d.priority, d.due_at""",
        lease_token,
        list(delivery_ids),
    )
    return [_claimed(row, lease_token) for row in rows]


async def finish(conn: Connection, finished: Sequence[Finished]) -> set[str]:
    """Record what became of claimed deliveries: the ids of those whose lease still held; the others are void."""
    rows = await conn.fetch(
        """UPDATE deliveries d SET
               state = k.state, reason = k.reason, provider_message_id = k.message_id,
               due_at = CASE WHEN k.state IN ('PENDING', 'HELD')
                             THEN syncbeat_now() + make_interval(secs => k.due_in_s) ELSE d.due_at END,
               attempts = d.attempts - CASE WHEN k.give_back THEN 1 ELSE 0 END,
               sent_at = CASE WHEN k.state = 'SENT' THEN syncbeat_now() ELSE d.sent_at END,
               lease_token = NULL, lease_until = NULL, updated_at = syncbeat_now()
           FROM unnest($1::text[], $2::uuid[], $3::uuid[], $4::text[], $5::text[], $6::text[], $7::float8[], $8::bool[])
                AS k (app_id, delivery_id, lease_token, state, reason, message_id, due_in_s, give_back)
           WHERE d.app_id = k.app_id AND d.delivery_id = k.delivery_id
             AND d.lease_token = k.lease_token AND d.state = 'IN_FLIGHT'
           RETURNING d.delivery_id""",
        [f.delivery.app_id for f in finished],
        [f.delivery.delivery_id for f in finished],
        [f.delivery.lease_token for f in finished],
        [f.state for f in finished],
        [f.reason for f in finished],
        # What a provider says may hold the one character that PostgreSQL's text cannot.
        [f.provider_message_id.replace("\0", "") for f in finished],
        [f.due_in_s for f in finished],
        [f.give_back_attempt for f in finished],
    )
    return {str(row["delivery_id"]) for row in rows}


async def drop_dead_tokens(conn: Connection, dead: Sequence[ClaimedDelivery]) -> None:
    """Take away registration tokens that the provider calls dead, unless they were registered again meanwhile."""
    await conn.execute(
        """UPDATE devices v SET registration_token = NULL, token_digest = NULL, token_state = 'DEAD',
                  updated_at = syncbeat_now()
           FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::timestamptz[])
                AS k (app_id, user_id, device_id, token, registered_at)
           WHERE (v.app_id, v.user_id, v.device_id) = (k.app_id, k.user_id, k.device_id)
             AND v.registration_token = k.token AND v.token_registered_at <= k.registered_at""",
        [d.app_id for d in dead],
        [d.user_id for d in dead],
        [d.device_id for d in dead],
        [d.registration_token for d in dead],
        [d.token_registered_at for d in dead],
    )


async def extend(conn: Connection, lease_tokens: Sequence[str], lease_s: float) -> int:
    """Renew the leases held under these tokens; how many there are."""
    rows = await conn.fetch(
        """UPDATE deliveries SET lease_until = syncbeat_now() + make_interval(secs => $2)
           WHERE lease_token = ANY($1::uuid[]) AND state = 'IN_FLIGHT' AND lease_until > syncbeat_now()
           RETURNING 1 AS held""",
        list(lease_tokens),
        lease_s,
    )
    return len(rows)


async def rescue(conn: Connection, limit: int) -> int:
    """Put back what a worker left behind: leases that ran out. State and lease are checked again under the lock."""
    rows = await conn.fetch(
        """WITH lost AS (
               SELECT app_id, delivery_id FROM deliveries
               WHERE state = 'IN_FLIGHT' AND lease_until < syncbeat_now()
               ORDER BY lease_until LIMIT $1 FOR UPDATE SKIP LOCKED)
           UPDATE deliveries d SET state = 'PENDING', lease_token = NULL, lease_until = NULL,
                  due_at = syncbeat_now(), updated_at = syncbeat_now()
           FROM lost WHERE (d.app_id, d.delivery_id) = (lost.app_id, lost.delivery_id)
           RETURNING d.delivery_id""",
        limit,
    )
    return len(rows)


async def release(conn: Connection, lease_tokens: Sequence[str]) -> int:
    """Give back everything this worker holds, uncounted: it stops before it tried."""
    rows = await conn.fetch(
        """UPDATE deliveries SET state = 'PENDING', attempts = attempts - 1, lease_token = NULL, lease_until = NULL,
                  due_at = syncbeat_now(), updated_at = syncbeat_now()
           WHERE lease_token = ANY($1::uuid[]) AND state = 'IN_FLIGHT' RETURNING 1 AS given""",
        list(lease_tokens),
    )
    return len(rows)


async def forget_windows(conn: Connection, limit: int) -> int:
    """Delete up to `limit` dedupe windows that ended a while ago with nothing trailing; how many."""
    rows = await conn.fetch(
        """WITH old AS (
               SELECT ctid FROM dedupe_windows
               WHERE window_until < syncbeat_now() - interval '1 hour' AND trailed_by IS NULL
               LIMIT $1 FOR UPDATE SKIP LOCKED)
           DELETE FROM dedupe_windows w USING old WHERE w.ctid = old.ctid RETURNING 1 AS gone""",
        limit,
    )
    return len(rows)


def _claimed(row: Row, lease_token: str) -> ClaimedDelivery:
    return ClaimedDelivery(
        app_id=row["app_id"],
        delivery_id=str(row["delivery_id"]),
        lease_token=lease_token,
        notification_id=str(row["notification_id"]),
        user_id=row["user_id"],
        device_id=row["device_id"],
        platform=row["platform"] or "",
        registration_token=row["registration_token"] or "",
        token_registered_at=row["token_registered_at"],
        kind=Kind(row["kind"]),
        type=row["type"],
        scope=row["scope"],
        epoch=row["epoch"] or "",
        sequence=row["sequence"] or 0,
        content=Content(**orjson.loads(row["content"])),
        collapse_key=row["collapse_key"],
        lane=Lane(row["priority"]),
        attempt=row["attempts"],
        ttl_s=row["ttl_s"],
        age_s=row["age_s"],
        held=row["reason"] == "LIVE_STREAM",
        seen=row["seen"],
        shut_out=row["shut_out"],
    )
