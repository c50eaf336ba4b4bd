"""SQL of the delivery queue: claim, finish, rescue. Every write of a worker is fenced by its lease token.

Time is the database's alone. No transaction is open while a provider is asked.
Only what is in flight has a lease token (a CHECK of the table). Where rows are found by their keys the state is not
asked for beside it: the planner would take the index of leases, and walk past all that ended and is not vacuumed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import datetime
from typing import NamedTuple

import orjson

from syncbeat_server.directory.model import QuietHours
from syncbeat_server.push.model import MOST_OTHER_SCOPES, ClaimedDelivery, Content, Finished, Kind, Lane, Reason
from syncbeat_server.push.store.queue_frontier import FIRST, Place
from syncbeat_server.storage.postgres.database import Connection, Row

# What is leased under the tokens of $1, locked as everybody locks deliveries: by their keys. What ran out is rescued.
_HELD = """held AS MATERIALIZED (
               SELECT app_id, delivery_id FROM deliveries
               WHERE lease_token = ANY($1::uuid[]) AND state = 'IN_FLIGHT' AND lease_until > syncbeat_now()
               ORDER BY app_id, delivery_id FOR NO KEY UPDATE)"""

# What becomes of one whose worker is gone. A wake-up that was to be sent again is SENT as before.
_LEFT = """state = CASE WHEN d.resends > 0 THEN 'SENT' WHEN d.called_back IS NULL THEN 'PENDING' ELSE 'CANCELLED' END,
           reason = CASE WHEN d.resends > 0 THEN d.reason ELSE coalesce(d.called_back, d.reason) END,
           called_back = NULL, lease_token = NULL, lease_until = NULL, due_at = syncbeat_now(),
           updated_at = syncbeat_now()"""

AppLane = tuple[str, int]
"""What is due in a lane of an app is claimed in its order."""

DeliveryKey = tuple[str, str]
"""An app and the id of a delivery."""


CLAIM = """
    WITH picked AS MATERIALIZED (
        SELECT r.app_id, r.room, r.priority, d.delivery_id, d.due_at
        FROM unnest($3::text[], $4::int[], $5::smallint[], $6::timestamptz[], $7::uuid[])
             AS r (app_id, room, priority, after_due, after_id)
        CROSS JOIN LATERAL (
            SELECT delivery_id, due_at FROM deliveries
            WHERE app_id = r.app_id AND priority = r.priority
              AND state IN ('PENDING', 'HELD', 'SCHEDULED') AND due_at <= syncbeat_now()
              AND (due_at, delivery_id) > (r.after_due, r.after_id)
            ORDER BY due_at, delivery_id LIMIT r.room FOR UPDATE SKIP LOCKED) d
    ), turns AS (
        SELECT *, row_number() OVER (PARTITION BY app_id, priority ORDER BY due_at, delivery_id)
                  * CASE priority WHEN 0 THEN 1 ELSE 4 END AS turn FROM picked
    ), due AS (
        SELECT *, row_number() OVER (PARTITION BY app_id ORDER BY turn, priority) AS place FROM turns
    ), chosen AS (
        -- The planner does not know how little a lane's room is, and would read the whole table for what it expects.
        SELECT * FROM due WHERE place <= room LIMIT $8
    ), taken AS (
        UPDATE deliveries d SET state = 'IN_FLIGHT', attempts = d.attempts + 1, lease_token = $1,
               lease_until = syncbeat_now() + make_interval(secs => $2), updated_at = syncbeat_now(),
               first_claimed_at = coalesce(d.first_claimed_at, syncbeat_now())
        FROM chosen c WHERE (d.app_id, d.delivery_id) = (c.app_id, c.delivery_id)
        RETURNING d.app_id, d.priority, d.delivery_id, d.due_at, d.reason)
    SELECT syncbeat_now() AS now, taken.* FROM (SELECT) always LEFT JOIN taken ON true
    ORDER BY taken.due_at, taken.delivery_id"""


class Claim(NamedTuple):
    """The result of a claim: the leased, the last of each lane, the database's time, and those whose window ended."""

    keys: list[DeliveryKey]
    last: dict[AppLane, Place]
    now: datetime
    trailing: list[DeliveryKey]


async def claim(
    conn: Connection,
    lease_token: str,
    lease_s: float,
    room: Mapping[str, int],
    after: Callable[[AppLane], Place] = lambda lane: FIRST,
) -> Claim:
    """Lease what is due, of each app up to its room. The attempt counts from here, so a crash counts.

    Of an app's lanes HIGH goes first, oldest first, but every fifth is a NORMAL one while both wait. Each lane is
    walked from behind a place on.
    """
    lanes = [(app_id, priority) for app_id in room for priority in Lane]
    places = [after(lane) for lane in lanes]
    rows = await conn.fetch(
        CLAIM,
        lease_token,
        lease_s,
        [app_id for app_id, _ in lanes],
        [room[app_id] for app_id, _ in lanes],
        [priority for _, priority in lanes],
        [place.at for place in places],
        [place.delivery_id for place in places],
        sum(room.values()),
    )
    found = [row for row in rows if row["delivery_id"] is not None]
    last = {(row["app_id"], row["priority"]): Place(row["due_at"], str(row["delivery_id"])) for row in found}
    keys = [(row["app_id"], str(row["delivery_id"])) for row in found]
    trailing = [key for key, row in zip(keys, found, strict=True) if row["reason"] == Reason.TRAILING]
    return Claim(keys, last, rows[0]["now"], trailing)


async def claimed(conn: Connection, lease_token: str, keys: Sequence[DeliveryKey]) -> list[ClaimedDelivery]:
    """What was claimed under this token, with everything an attempt needs.

    A wake-up of an epoch that its scope has left, since the database was restored meanwhile, goes to the scope's head.
    """
    rows = await _claimed_rows(conn, lease_token, keys)
    if any(row["outlived"] for row in rows):
        await _go_to_head(conn, lease_token, keys)
        rows = await _claimed_rows(conn, lease_token, keys)
    together = defaultdict[tuple[str, str, str], set[str]](set)
    for row in rows:
        if row["wakes"] and not row["seen"]:
            together[row["app_id"], row["user_id"], row["device_id"]].add(row["scope"])
    return [_claimed(row, lease_token, together[row["app_id"], row["user_id"], row["device_id"]]) for row in rows]


async def _go_to_head(conn: Connection, lease_token: str, keys: Sequence[DeliveryKey]) -> None:
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
                  n.expires_at <= n.due_at AS at_once,
                  p.quiet_start, p.quiet_end, p.quiet_zone, p.max_per_day,
                  NOT n.critical AND n.type <> '' AND n.type = ANY(p.muted_types) AS muted,
                  syncbeat_now() AS claimed_at, extract(epoch FROM d.expires_at - syncbeat_now())::float8 AS ttl_s,
                  extract(epoch FROM syncbeat_now() - d.first_claimed_at)::float8 AS age_s,
                  CASE WHEN d.cursors IS NOT NULL THEN NOT EXISTS (
                      SELECT 1 FROM jsonb_each(d.cursors) AS told (scope, place)
                      WHERE NOT EXISTS (SELECT 1 FROM device_cursors c JOIN scopes s USING (app_id, scope)
                                        WHERE (c.app_id, c.user_id, c.device_id, c.scope, c.epoch)
                                            = (d.app_id, d.user_id, d.device_id, told.scope, told.place ->> 0)
                                          AND c.sequence BETWEEN (told.place ->> 1)::bigint AND s.head))
                  ELSE EXISTS (SELECT 1 FROM device_cursors c
                          WHERE (c.app_id, c.user_id, c.device_id, c.scope, c.epoch)
                              = (d.app_id, d.user_id, d.device_id, d.scope, d.epoch)
                            -- What is ahead of the head was seen of a feed that a restore took back.
                            AND (c.sequence BETWEEN d.sequence AND s.head
                                 OR d.resends > 0 AND c.fetched BETWEEN d.sequence AND s.head)) END AS seen,
                  d.epoch IS NOT NULL AND d.cursors IS NULL AS wakes,
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
                  s.epoch <> d.epoch AS outlived,
                  EXISTS (SELECT 1 FROM users u WHERE (u.app_id, u.user_id) = (d.app_id, d.user_id)
                            AND coalesce(u.disabled_at, u.deleted_at) IS NOT NULL) AS shut_out
           FROM d
           JOIN notifications n ON (n.app_id, n.notification_id) = (d.app_id, d.notification_id)
           LEFT JOIN devices v ON (v.app_id, v.user_id, v.device_id) = (d.app_id, d.user_id, d.device_id)
           LEFT JOIN preferences p ON (p.app_id, p.user_id) = (d.app_id, d.user_id)
           LEFT JOIN scopes s ON (s.app_id, s.scope) = (d.app_id, d.scope) AND d.epoch IS NOT NULL
           ORDER BY d.priority, d.due_at""",
        lease_token,
        *_columns(keys),
        MOST_OTHER_SCOPES + 1,
    )


async def finish(conn: Connection, finished: Sequence[Finished]) -> set[str]:
    """Record what became of claimed deliveries: the ids of those whose lease still held; the others are void."""
    rows = await conn.fetch(
        """WITH k AS (
               SELECT * FROM unnest($1::text[], $2::uuid[], $3::uuid[], $4::text[], $5::text[], $6::text[],
                                    $7::float8[], $8::bool[], $9::bool[], $10::bool[])
                   AS k (app_id, delivery_id, lease_token, state, reason, message_id, due_in_s, give_back, lives_on,
                         moved)
           ), own AS MATERIALIZED (
               SELECT d.app_id, d.delivery_id FROM deliveries d JOIN k USING (app_id, delivery_id, lease_token)
               ORDER BY d.app_id, d.delivery_id FOR UPDATE OF d)
           UPDATE deliveries d SET
               -- What was called back in flight is not tried again; what was sent is sent.
               state = CASE WHEN d.called_back IS NULL OR k.state = 'SENT' THEN k.state ELSE 'CANCELLED' END,
               reason = CASE WHEN d.called_back IS NULL OR k.state = 'SENT' THEN k.reason ELSE d.called_back END,
               called_back = NULL,
               provider_message_id = coalesce(nullif(k.message_id, ''), d.provider_message_id),
               due_at = CASE WHEN k.state IN ('PENDING', 'HELD')
                             THEN syncbeat_now() + make_interval(secs => k.due_in_s) ELSE d.due_at END,
               expires_at = CASE WHEN k.lives_on
                                 THEN least(d.expires_at + make_interval(secs => k.due_in_s),
                                            d.created_at + greatest(d.expires_at - d.created_at, interval '7 days'))
                                 ELSE d.expires_at END,
               attempts = d.attempts - CASE WHEN k.give_back THEN 1 ELSE 0 END,
               -- The day's maximum counts what was shown, or may have been.
               counted_at = CASE WHEN k.state = 'SENT' OR k.reason = 'AMBIGUOUS' OR d.ambiguous THEN d.counted_at END,
               first_claimed_at = CASE WHEN k.give_back AND d.attempts = 1 THEN NULL ELSE d.first_claimed_at END,
               moves = d.moves + CASE WHEN k.moved THEN 1 ELSE 0 END,
               ambiguous = d.ambiguous OR k.reason = 'AMBIGUOUS',
               sent_at = CASE WHEN k.state = 'SENT' AND NOT k.give_back THEN syncbeat_now() ELSE d.sent_at END,
               -- One that was called back while it was sent again is not looked at any more.
               answer_by = CASE WHEN k.state = 'SENT' AND k.due_in_s > 0 AND d.called_back IS NULL
                                     AND (d.resends = 0 OR d.answer_by IS NOT NULL)
                                THEN syncbeat_now() + make_interval(secs => k.due_in_s) END,
               lease_token = NULL, lease_until = NULL, updated_at = syncbeat_now()
           FROM own JOIN k USING (app_id, delivery_id)
           WHERE d.app_id = own.app_id AND d.delivery_id = own.delivery_id AND d.lease_token = k.lease_token
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
        [f.lives_on for f in finished],
        [f.moved for f in finished],
    )
    return {str(row["delivery_id"]) for row in rows}


async def still_wanted(conn: Connection, delivery: ClaimedDelivery) -> bool:
    """Tell if a claimed delivery is neither called back nor leased by another meanwhile."""
    return bool(
        await conn.fetchval(
            """SELECT called_back IS NULL FROM deliveries
               WHERE (app_id, delivery_id, lease_token) = ($1, $2::uuid, $3::uuid)""",
            delivery.app_id,
            delivery.delivery_id,
            delivery.lease_token,
        )
    )


async def texts_as_accepted(conn: Connection, delivery: ClaimedDelivery) -> dict[str, tuple[str, str]]:
    """Read the texts of its template at acceptance by locale, as (title, body); nothing if it is of before that was
    kept."""
    found = await conn.fetchval(
        "SELECT texts FROM notifications WHERE app_id = $1 AND notification_id = $2",
        delivery.app_id,
        delivery.notification_id,
    )
    return {} if found is None else {locale: (text[0], text[1]) for locale, text in orjson.loads(found).items()}


async def extend(conn: Connection, lease_tokens: Sequence[str], lease_s: float) -> int:
    """Renew the leases held under these tokens; how many there are."""
    rows = await conn.fetch(
        f"""WITH {_HELD}
           UPDATE deliveries d SET lease_until = syncbeat_now() + make_interval(secs => $2)
           FROM held WHERE (d.app_id, d.delivery_id) = (held.app_id, held.delivery_id)
             AND d.lease_until > syncbeat_now()
           RETURNING 1 AS held""",  # noqa: S608  # constants
        list(lease_tokens),
        lease_s,
    )
    return len(rows)


class Rescued(NamedTuple):
    """How many were put back, whether that is all, and the database's time."""

    back: int
    all: bool
    now: datetime


async def rescue(conn: Connection, limit: int, since: datetime = FIRST.at) -> Rescued:
    """Put back what a worker left behind: leases that ran out, from a time on. State and lease are checked again under
    the lock.

    A wake-up that was to be sent again is SENT as before; the look at it that is due decides how it goes on.
    """
    row = await conn.fetchrow(
        f"""WITH lost AS (
               SELECT app_id, delivery_id FROM deliveries
               WHERE state = 'IN_FLIGHT' AND lease_until >= $2 AND lease_until < syncbeat_now()
               ORDER BY lease_until LIMIT $1 FOR UPDATE SKIP LOCKED),
           back AS (
               UPDATE deliveries d SET {_LEFT}
               FROM lost WHERE (d.app_id, d.delivery_id) = (lost.app_id, lost.delivery_id)
               RETURNING 1)
           SELECT (SELECT count(*) FROM lost) AS found, (SELECT count(*) FROM back) AS back, syncbeat_now() AS now""",  # noqa: S608  # constants
        limit,
        since,
    )
    if row is None:
        raise AssertionError("a statement without a table returns a row")
    return Rescued(row["back"], row["found"] < limit, row["now"])


async def release(conn: Connection, lease_tokens: Sequence[str]) -> int:
    """Give back everything this worker holds, uncounted: it stops before it tried. What ran out is rescued."""
    rows = await conn.fetch(
        f"""WITH {_HELD}
           UPDATE deliveries d SET {_LEFT}, attempts = d.attempts - 1,
                  first_claimed_at = CASE WHEN d.attempts = 1 THEN NULL ELSE d.first_claimed_at END,
                  counted_at = CASE WHEN d.ambiguous THEN d.counted_at END
           FROM held WHERE (d.app_id, d.delivery_id) = (held.app_id, held.delivery_id) RETURNING 1 AS given""",  # noqa: S608  # constants
        list(lease_tokens),
    )
    return len(rows)


def _columns(keys: Sequence[DeliveryKey]) -> tuple[list[str], list[str]]:
    return [app_id for app_id, _ in keys], [delivery_id for _, delivery_id in keys]


def _claimed(row: Row, lease_token: str, together: AbstractSet[str]) -> ClaimedDelivery:
    others = {*(row["other_scopes"] or ()), *(together if row["wakes"] else ())} - {row["scope"]}
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
        claimed_at=row["claimed_at"],
        shut_out=row["shut_out"],
        critical=row["critical"],
        patient=row["patient"],
        at_once=row["at_once"],
        moves=row["moves"],
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
    )
