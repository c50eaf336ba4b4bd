"""SQL of the delivery queue: claim, finish, rescue. Every write of a worker is fenced by its lease token.

Time is the database's alone. No transaction is open while a provider is asked.
Only what is in flight has a lease token (a CHECK of the table). Statements that find rows by their keys do not test the
state beside them: the planner would take the index of leases, and scan all entries that ended and are not vacuumed.
"""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime
from typing import NamedTuple

import orjson

from syncbeat_server.directory.model import QuietHours
from syncbeat_server.push.model import MAX_OTHER_SCOPES, ClaimedDelivery, Content, DeliveryUpdate, Kind, Lane, Reason
from syncbeat_server.push.policy.transitions import Event, Guard
from syncbeat_server.push.store.daily_maximum import PLACE_AFTER_ATTEMPT, PLACE_WITHOUT_ATTEMPT
from syncbeat_server.push.store.state_sql import IN_FLIGHT, WAITING, becomes
from syncbeat_server.storage.postgres.database import Connection, Row

AppLane = tuple[str, int]
"""An app and the value of a lane, within which deliveries are claimed in the order in which they are due."""

DeliveryKey = tuple[str, str]
"""An app and the id of a delivery."""

_LANES = tuple(Lane)


class QueuePosition(NamedTuple):
    """A position in the order in which deliveries are due; a scan begins behind it."""

    due_at: datetime
    delivery_id: str = str(uuid.UUID(int=0))


QUEUE_START = QueuePosition(datetime(1970, 1, 1, tzinfo=UTC))

# Leases held under the tokens of $1, locked in the order of the keys, as all statements lock deliveries. Those that
# expired are left to `rescue`.
_LEASED = f"""leased AS MATERIALIZED (
               SELECT app_id, delivery_id FROM deliveries
               WHERE lease_token = ANY($1::uuid[]) AND state = {IN_FLIGHT} AND lease_until > syncbeat_now()
               ORDER BY app_id, delivery_id FOR NO KEY UPDATE)"""


def _end_lease(event: Event) -> str:
    """Return the assignments that end a lease without an outcome. A wake-up that was to be sent again stays SENT."""
    return f"""state = CASE WHEN d.resends > 0 THEN {becomes(event, Guard.SENT_BEFORE)}
                        WHEN d.called_back IS NULL THEN {becomes(event)}
                        ELSE {becomes(event, Guard.CANCELLED_MEANWHILE)} END,
           reason = CASE WHEN d.resends > 0 THEN d.reason ELSE coalesce(d.called_back, d.reason) END,
           called_back = NULL, lease_token = NULL, lease_until = NULL, due_at = syncbeat_now(),
           updated_at = syncbeat_now()"""


CLAIM = f"""
    WITH picked AS MATERIALIZED (
        SELECT r.app_id, r.room, r.priority, d.delivery_id, d.due_at
        FROM unnest($3::text[], $4::int[], $5::smallint[], $6::timestamptz[], $7::uuid[])
             AS r (app_id, room, priority, after_due, after_id)
        CROSS JOIN LATERAL (
            SELECT delivery_id, due_at FROM deliveries
            WHERE app_id = r.app_id AND priority = r.priority
              AND state IN {WAITING} AND due_at <= syncbeat_now()
              AND (due_at, delivery_id) > (r.after_due, r.after_id)
            ORDER BY due_at, delivery_id LIMIT r.room FOR UPDATE SKIP LOCKED) d
    ), turns AS (
        SELECT *, row_number() OVER (PARTITION BY app_id, priority ORDER BY due_at, delivery_id)
                  * CASE priority WHEN 0 THEN 1 ELSE 4 END AS turn FROM picked
    ), due AS (
        SELECT *, row_number() OVER (PARTITION BY app_id ORDER BY turn, priority) AS place FROM turns
    ), chosen AS (
        -- The planner cannot estimate the room of a lane, and would read the whole table for the rows it expects.
        SELECT * FROM due WHERE place <= room LIMIT $8
    ), taken AS (
        UPDATE deliveries d SET state = {becomes(Event.CLAIM)}, attempts = d.attempts + 1, lease_token = $1,
               lease_until = syncbeat_now() + make_interval(secs => $2), updated_at = syncbeat_now(),
               first_claimed_at = coalesce(d.first_claimed_at, syncbeat_now())
        FROM chosen c WHERE (d.app_id, d.delivery_id) = (c.app_id, c.delivery_id)
        RETURNING d.app_id, d.priority, d.delivery_id, d.due_at, d.reason)
    SELECT syncbeat_now() AS now, taken.* FROM (SELECT) always LEFT JOIN taken ON true
    ORDER BY taken.due_at, taken.delivery_id"""

_SENT, _CANCELLED = becomes(Event.SEND), becomes(Event.END_CANCELLED, Guard.CANCELLED_MEANWHILE)


class Claim(NamedTuple):
    """Result of a claim.

    `last` is the last delivery of each lane, `now` the database's time, `trailing` the keys of those whose dedupe
    window ended.
    """

    keys: list[DeliveryKey]
    last: dict[AppLane, QueuePosition]
    now: datetime
    trailing: list[DeliveryKey]


async def claim(
    conn: Connection,
    lease_token: str,
    lease_s: float,
    room: Mapping[str, int],
    after: Callable[[AppLane], QueuePosition] = lambda lane: QUEUE_START,
) -> Claim:
    """Lease what is due, of each app up to its room. The attempt counts from here, so that one that crashes counts.

    Of an app's lanes HIGH goes first, oldest first, but every fifth delivery is a NORMAL one while both wait. `after`
    gives the position behind which the scan of each lane begins.
    """
    lanes = [(app_id, priority) for app_id in room for priority in Lane]
    positions = [after(lane) for lane in lanes]
    rows = await conn.fetch(
        CLAIM,
        lease_token,
        lease_s,
        [app_id for app_id, _ in lanes],
        [room[app_id] for app_id, _ in lanes],
        [priority for _, priority in lanes],
        [position.due_at for position in positions],
        [position.delivery_id for position in positions],
        sum(room.values()),
    )
    found = [row for row in rows if row["delivery_id"] is not None]
    last_rows = {(row["app_id"], row["priority"]): row for row in found}
    last = {lane: QueuePosition(row["due_at"], str(row["delivery_id"])) for lane, row in last_rows.items()}
    keys = [(row["app_id"], str(row["delivery_id"])) for row in found]
    trailing = [key for key, row in zip(keys, found, strict=True) if row["reason"] == Reason.TRAILING]
    return Claim(keys, last, rows[0]["now"], trailing)


async def read_claimed(conn: Connection, lease_token: str, keys: Sequence[DeliveryKey]) -> list[ClaimedDelivery]:
    """Return the deliveries claimed under this token, with everything an attempt needs.

    A wake-up of an epoch that its scope has left, because the database was restored meanwhile, is moved to the scope's
    head.
    """
    rows = await _claimed_rows(conn, lease_token, keys)
    if any(row["is_stale"] for row in rows):
        await _move_to_head(conn, lease_token, keys)
        rows = await _claimed_rows(conn, lease_token, keys)
    silent_scopes = defaultdict[tuple[str, str, str], set[str]](set)
    for row in rows:
        if row["silent"] and not row["seen"]:
            silent_scopes[row["app_id"], row["user_id"], row["device_id"]].add(row["scope"])
    # Most of a claim has the contents of a few notifications: each is read once.
    contents = {text: Content(**orjson.loads(text)) for text in {row["content"] for row in rows}}
    return [_claimed(row, lease_token, contents[row["content"]], silent_scopes) for row in rows]


async def _move_to_head(conn: Connection, lease_token: str, keys: Sequence[DeliveryKey]) -> None:
    await conn.execute(
        """UPDATE deliveries d SET epoch = s.epoch, sequence = s.head
           FROM unnest($2::text[], $3::uuid[]) AS k (app_id, delivery_id), scopes s
           WHERE (d.app_id, d.delivery_id) = (k.app_id, k.delivery_id) AND d.lease_token = $1
             AND (s.app_id, s.scope) = (d.app_id, d.scope) AND s.epoch <> d.epoch""",
        lease_token,
        *_columns(keys),
    )


async def _claimed_rows(conn: Connection, lease_token: str, keys: Sequence[DeliveryKey]) -> Sequence[Row]:
    return await conn.fetch(
        # Found first, by their keys: joined in one, the planner may go through every notification of an app for each.
        """WITH d AS MATERIALIZED (
               SELECT d.* FROM unnest($2::text[], $3::uuid[]) AS k (app_id, delivery_id)
               JOIN deliveries d ON (d.app_id, d.delivery_id) = (k.app_id, k.delivery_id)
               WHERE d.lease_token = $1)
           SELECT d.app_id, d.delivery_id, d.notification_id, d.user_id, d.device_id, d.scope, d.epoch, d.sequence,
                  d.attempts, d.priority, d.reason, d.moves, d.resends,
                  v.platform, v.token_registered_at, v.locale, v.time_zone,
                  CASE WHEN v.token_state IN ('ACTIVE', 'STALE') THEN v.registration_token END AS registration_token,
                  n.kind, n.caller, n.type, n.content, n.collapse_key, n.critical, n.patient,
                  n.expires_at <= n.due_at AS now_or_never, n.traceparent,
                  p.quiet_start, p.quiet_end, p.quiet_zone, p.max_per_day,
                  NOT n.critical AND n.type <> '' AND n.type = ANY(p.muted_types) AS muted,
                  syncbeat_now() AS claimed_at, extract(epoch FROM d.expires_at - syncbeat_now())::float8 AS ttl_s,
                  extract(epoch FROM syncbeat_now() - d.first_claimed_at)::float8 AS age_s,
                  CASE WHEN d.cursors IS NOT NULL THEN NOT EXISTS (
                      SELECT 1 FROM jsonb_each(d.cursors) AS target (scope, place)
                      WHERE NOT EXISTS (SELECT 1 FROM device_cursors c JOIN scopes s USING (app_id, scope)
                                        WHERE (c.app_id, c.user_id, c.device_id, c.scope, c.epoch)
                                            = (d.app_id, d.user_id, d.device_id, target.scope, target.place ->> 0)
                                          AND c.sequence BETWEEN (target.place ->> 1)::bigint AND s.head))
                  ELSE EXISTS (SELECT 1 FROM device_cursors c
                          WHERE (c.app_id, c.user_id, c.device_id, c.scope, c.epoch)
                              = (d.app_id, d.user_id, d.device_id, d.scope, d.epoch)
                            -- A cursor ahead of the head was read from a feed that a restore undid.
                            AND (c.sequence BETWEEN d.sequence AND s.head
                                 OR d.resends > 0 AND c.fetched BETWEEN d.sequence AND s.head)) END AS seen,
                  d.epoch IS NOT NULL AND d.cursors IS NULL AS silent,
                  CASE WHEN d.epoch IS NOT NULL AND d.cursors IS NULL THEN ARRAY(
                      SELECT DISTINCT o.scope FROM deliveries o
                      WHERE (o.app_id, o.user_id, o.device_id) = (d.app_id, d.user_id, d.device_id)
                        AND o.sent_at IS NOT NULL AND o.epoch IS NOT NULL AND o.cursors IS NULL
                        AND o.expires_at > syncbeat_now() AND o.received_at IS NULL AND o.scope <> d.scope
                        AND NOT EXISTS (SELECT 1 FROM device_cursors c
                                        WHERE (c.app_id, c.user_id, c.device_id, c.scope, c.epoch)
                                            = (o.app_id, o.user_id, o.device_id, o.scope, o.epoch)
                                          AND greatest(c.sequence, c.fetched) >= o.sequence)
                      LIMIT $4)
                  WHEN d.cursors IS NOT NULL THEN ARRAY(SELECT jsonb_object_keys(d.cursors)) END AS other_scopes,
                  s.epoch <> d.epoch AS is_stale,
                  EXISTS (SELECT 1 FROM users u WHERE (u.app_id, u.user_id) = (d.app_id, d.user_id)
                            AND coalesce(u.disabled_at, u.deleted_at) IS NOT NULL) AS user_disabled
           FROM d
           JOIN notifications n ON (n.app_id, n.notification_id) = (d.app_id, d.notification_id)
           LEFT JOIN devices v ON (v.app_id, v.user_id, v.device_id) = (d.app_id, d.user_id, d.device_id)
           LEFT JOIN preferences p ON (p.app_id, p.user_id) = (d.app_id, d.user_id)
           LEFT JOIN scopes s ON (s.app_id, s.scope) = (d.app_id, d.scope) AND d.epoch IS NOT NULL
           ORDER BY d.priority, d.due_at""",
        lease_token,
        *_columns(keys),
        MAX_OTHER_SCOPES + 1,
    )


async def finish(conn: Connection, results: Sequence[DeliveryUpdate]) -> set[str]:
    """Record the results of claimed deliveries, and return the ids of those whose lease still held; others are void."""
    rows = await conn.fetch(
        f"""WITH k AS (
               SELECT * FROM unnest($1::text[], $2::uuid[], $3::uuid[], $4::text[], $5::text[], $6::text[],
                                    $7::float8[], $8::bool[], $9::bool[], $10::bool[], $11::text[])
                   AS k (app_id, delivery_id, lease_token, state, reason, message_id, due_in_s, give_back, extends_ttl,
                         redirected, traceparent)
           ), own AS MATERIALIZED (
               SELECT d.app_id, d.delivery_id FROM deliveries d JOIN k USING (app_id, delivery_id, lease_token)
               ORDER BY d.app_id, d.delivery_id FOR UPDATE OF d)
           UPDATE deliveries d SET
               -- One that was cancelled in flight is not tried again; one that was sent is sent.
               state = CASE WHEN d.called_back IS NULL OR k.state = {_SENT} THEN k.state ELSE {_CANCELLED} END,
               reason = CASE WHEN d.called_back IS NULL OR k.state = {_SENT} THEN k.reason ELSE d.called_back END,
               called_back = NULL, traceparent = coalesce(nullif(k.traceparent, ''), d.traceparent),
               provider_message_id = coalesce(nullif(k.message_id, ''), d.provider_message_id),
               due_at = CASE WHEN k.state IN {WAITING}
                             THEN syncbeat_now() + make_interval(secs => k.due_in_s) ELSE d.due_at END,
               expires_at = CASE WHEN k.extends_ttl
                                 THEN least(d.expires_at + make_interval(secs => k.due_in_s),
                                            d.created_at + greatest(d.expires_at - d.created_at, interval '7 days'))
                                 ELSE d.expires_at END,
               attempts = d.attempts - k.give_back::int, counted_at = {PLACE_AFTER_ATTEMPT},
               first_claimed_at = CASE WHEN k.give_back AND d.attempts = 1 THEN NULL ELSE d.first_claimed_at END,
               moves = d.moves + k.redirected::int, ambiguous = d.ambiguous OR k.reason = 'AMBIGUOUS',
               sent_at = CASE WHEN k.state = {_SENT} AND NOT k.give_back THEN syncbeat_now() ELSE d.sent_at END,
               -- The answer of one that was cancelled while it was sent again is not awaited any more.
               answer_by = CASE WHEN k.state = {_SENT} AND k.due_in_s > 0 AND d.called_back IS NULL
                                     AND (d.resends = 0 OR d.answer_by IS NOT NULL)
                                THEN syncbeat_now() + make_interval(secs => k.due_in_s) END,
               lease_token = NULL, lease_until = NULL, updated_at = syncbeat_now()
           FROM own JOIN k USING (app_id, delivery_id)
           WHERE d.app_id = own.app_id AND d.delivery_id = own.delivery_id AND d.lease_token = k.lease_token
           RETURNING d.delivery_id""",
        [one.delivery.app_id for one in results],
        [one.delivery.delivery_id for one in results],
        [one.delivery.lease_token for one in results],
        [one.state for one in results],
        [one.reason for one in results],
        # A provider's text may hold NUL, the one character that PostgreSQL's text cannot.
        [one.provider_message_id.replace("\0", "") for one in results],
        [one.due_in_s for one in results],
        [one.give_back_attempt for one in results],
        [one.extends_ttl for one in results],
        [one.redirected for one in results],
        [one.traceparent for one in results],
    )
    return {str(row["delivery_id"]) for row in rows}


async def is_still_wanted(conn: Connection, delivery: ClaimedDelivery) -> bool:
    """Return True unless the claimed delivery was cancelled or leased by another worker meanwhile."""
    return bool(
        await conn.fetchval(
            """SELECT called_back IS NULL FROM deliveries
               WHERE (app_id, delivery_id, lease_token) = ($1, $2::uuid, $3::uuid)""",
            delivery.app_id,
            delivery.delivery_id,
            delivery.lease_token,
        )
    )


async def extend(conn: Connection, lease_tokens: Sequence[str], lease_s: float) -> int:
    """Renew the leases held under these tokens, and return their number."""
    rows = await conn.fetch(
        f"""WITH {_LEASED}
           UPDATE deliveries d SET lease_until = syncbeat_now() + make_interval(secs => $2)
           FROM leased WHERE (d.app_id, d.delivery_id) = (leased.app_id, leased.delivery_id)
             AND d.lease_until > syncbeat_now()
           RETURNING 1 AS extended""",
        list(lease_tokens),
        lease_s,
    )
    return len(rows)


class RescueBatch(NamedTuple):
    """Number of deliveries put back, True if that was the last batch, and the database's time."""

    rescued: int
    is_last: bool
    now: datetime


async def rescue(conn: Connection, limit: int, since: datetime = QUEUE_START.due_at) -> RescueBatch:
    """Put back up to `limit` deliveries whose lease expired after `since`; state and lease are checked again under the
    lock.

    A wake-up that was to be sent again stays SENT; when its answer is overdue it is decided about again.
    """
    row = await conn.fetchrow(
        f"""WITH lost AS (
               SELECT app_id, delivery_id FROM deliveries
               WHERE state = {IN_FLIGHT} AND lease_until >= $2 AND lease_until < syncbeat_now()
               ORDER BY lease_until LIMIT $1 FOR UPDATE SKIP LOCKED),
           back AS (
               UPDATE deliveries d SET {_end_lease(Event.LOSE_LEASE)}
               FROM lost WHERE (d.app_id, d.delivery_id) = (lost.app_id, lost.delivery_id)
               RETURNING 1)
           SELECT (SELECT count(*) FROM lost) AS found, (SELECT count(*) FROM back) AS back, syncbeat_now() AS now""",
        limit,
        since,
    )
    if row is None:
        raise AssertionError("a statement without a table returns a row")
    return RescueBatch(row["back"], row["found"] < limit, row["now"])


async def release(conn: Connection, lease_tokens: Sequence[str]) -> int:
    """Give back all deliveries held under these tokens. Their attempts do not count: the worker stops before them."""
    rows = await conn.fetch(
        f"""WITH {_LEASED}
           UPDATE deliveries d SET {_end_lease(Event.RELEASE)}, attempts = d.attempts - 1,
                  first_claimed_at = CASE WHEN d.attempts = 1 THEN NULL ELSE d.first_claimed_at END,
                  counted_at = {PLACE_WITHOUT_ATTEMPT}
           FROM leased WHERE (d.app_id, d.delivery_id) = (leased.app_id, leased.delivery_id) RETURNING 1 AS given""",
        list(lease_tokens),
    )
    return len(rows)


def _columns(keys: Sequence[DeliveryKey]) -> tuple[list[str], list[str]]:
    return [app_id for app_id, _ in keys], [delivery_id for _, delivery_id in keys]


def _claimed(
    row: Row, lease_token: str, content: Content, silent_scopes: Mapping[tuple[str, str, str], AbstractSet[str]]
) -> ClaimedDelivery:
    others = set(row["other_scopes"] or ())
    if row["silent"]:
        others |= silent_scopes.get((row["app_id"], row["user_id"], row["device_id"]), set())
    others.discard(row["scope"])
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
        kind=Kind[row["kind"]],
        type=row["type"],
        scope=row["scope"],
        epoch=row["epoch"] or "",
        sequence=row["sequence"] or 0,
        content=content,
        collapse_key=row["collapse_key"],
        lane=_LANES[row["priority"]],
        attempt=row["attempts"],
        ttl_s=row["ttl_s"],
        age_s=row["age_s"],
        held_for_stream=row["reason"] == Reason.LIVE_STREAM,
        already_seen=row["seen"],
        claimed_at=row["claimed_at"],
        user_disabled=row["user_disabled"],
        critical=row["critical"],
        patient=row["patient"],
        now_or_never=row["now_or_never"],
        redirects=row["moves"],
        resends=row["resends"],
        locale=row["locale"] or "",
        time_zone=row["time_zone"] or "",
        quiet=None
        if row["quiet_start"] is None
        else QuietHours(row["quiet_start"], row["quiet_end"], row["quiet_zone"]),
        max_per_day=row["max_per_day"],
        muted=bool(row["muted"]),
        superseded=row["reason"] == Reason.MERGED,
        caller=row["caller"],
        other_scopes=tuple(sorted(others)),
        traceparent=row["traceparent"] or "",
    )
