"""SQL of what is shown for changes: one delivery a device for all scopes of a call, two in a window of a scope at most.

The first of a window goes out at once. Each later one waits for the window's end, where the last one is shown and those
before it are not. One goes out at once if any of its scopes has a free window, and then takes the windows of them all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import groupby
from operator import itemgetter

import orjson

from syncbeat_server.push.model import ClaimedDelivery, DeliveryState, NewNotification, Reason, Target, device_columns
from syncbeat_server.push.store import notifications as notifications_store
from syncbeat_server.push.store.dedupe import FREE, WindowKey
from syncbeat_server.push.store.targets import TARGETED, columns
from syncbeat_server.storage.postgres.database import Connection, Row

# A window that is not there yet is written as one that is over. Those of barred devices are locked with the others:
# what bars them may end before the deliveries are written.
_LOCK_WINDOWS = f"""{TARGETED}
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
"""  # noqa: S608  # constants

_FIND_WINDOWS = f"""
SELECT w.app_id, w.user_id, w.device_id, w.dedupe_key, w.scope, w.window_until, {FREE} AS free,
       syncbeat_now() AS now
FROM dedupe_windows w
JOIN unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[])
     AS k (app_id, user_id, device_id, dedupe_key, scope) USING (app_id, user_id, device_id, dedupe_key, scope)
"""  # noqa: S608  # constants

_WRITE_WINDOWS = """
UPDATE dedupe_windows w SET
    opened_by = coalesce(k.opened_by, w.opened_by), trailed_by = k.trailed_by,
    window_until = coalesce(k.window_until, w.window_until), duration = k.duration,
    epoch = coalesce(k.epoch, w.epoch), sequence = coalesce(k.sequence, w.sequence)
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::uuid[], $7::uuid[], $8::timestamptz[],
            $9::interval[], $10::text[], $11::bigint[])
     AS k (app_id, user_id, device_id, dedupe_key, scope, opened_by, trailed_by, window_until, duration, epoch,
           sequence)
WHERE (w.app_id, w.user_id, w.device_id, w.dedupe_key, w.scope)
    = (k.app_id, k.user_id, k.device_id, k.dedupe_key, k.scope)
"""

_WRITE_DELIVERIES = """
INSERT INTO deliveries (app_id, notification_id, user_id, device_id, scope, epoch, sequence, cursors, state, reason,
                        priority, due_at, expires_at, created_at, updated_at)
SELECT app_id, notification_id, user_id, device_id, scope, epoch, sequence, cursors::jsonb, state, reason, priority,
       coalesce(due_at, syncbeat_now()), syncbeat_now() + make_interval(secs => ttl_s), syncbeat_now(), syncbeat_now()
FROM unnest($1::text[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::text[], $7::bigint[], $8::text[],
            $9::text[], $10::text[], $11::smallint[], $12::timestamptz[], $13::float8[])
     AS k (app_id, notification_id, user_id, device_id, scope, epoch, sequence, cursors, state, reason, priority,
           due_at, ttl_s)
"""


@dataclass(frozen=True, slots=True)
class _Window:
    """The state of a window: if it holds nothing off, or until when; its new opener and the one that trails.

    `epoch` and `sequence` are what was shown by the one that opened it.
    """

    free: bool
    until: datetime
    opened_by: str | None = None
    trailed_by: str | None = None
    duration: timedelta = timedelta()
    epoch: str | None = None
    sequence: int | None = None


@dataclass(slots=True)
class _Decided:
    """The deliveries to write, and the windows that they open or trail."""

    deliveries: list[tuple[object, ...]] = field(default_factory=list)
    windows: dict[WindowKey, _Window] = field(default_factory=dict)
    counts: dict[str, Counter[tuple[DeliveryState, Reason]]] = field(default_factory=dict)


async def write(
    conn: Connection, notifications: Sequence[NewNotification]
) -> Mapping[str, Mapping[tuple[DeliveryState, Reason], int]]:
    """Write the deliveries of notifications, alerts and others: counts by (state, reason) of each."""
    shown = [n for n in notifications if n.alerts]
    if not shown:
        return await notifications_store.insert_deliveries(conn, notifications)
    # All windows in one order, before any is looked at. Whoever becomes a target after that is none: to lock its window
    # now, with others in hand, could be a deadlock.
    rows = await conn.fetch(_LOCK_WINDOWS, *columns(notifications))
    counts = await notifications_store.insert_deliveries(conn, _others(notifications, rows))
    return counts | dict(
        await _insert_alerts(conn, notifications, [r for r in rows if notifications[r["i"] - 1].alerts])
    )


def _others(notifications: Sequence[NewNotification], rows: Sequence[Row]) -> list[NewNotification]:
    """Return what is no alert, with the devices whose windows are locked as its targets."""
    targets: dict[int, list[Target]] = {i: [] for i, n in enumerate(notifications, 1) if not n.alerts}
    for row in rows:
        if row["i"] in targets:
            place = {"epoch": row["epoch"], "sequence": row["sequence"]}
            targets[row["i"]].append(
                Target(user_id=row["user_id"], device_id=row["device_id"], scope=row["scope"] or None, **place)
            )
    return [replace(notifications[i - 1], targets=tuple(found)) for i, found in targets.items()]


async def _insert_alerts(
    conn: Connection, notifications: Sequence[NewNotification], rows: Sequence[Row]
) -> Mapping[str, Mapping[tuple[DeliveryState, Reason], int]]:
    """Write the deliveries of alerts to their targets, whose windows are locked."""
    keys = [key for row in rows if (key := _key(row)) is not None]
    found = await conn.fetch(_FIND_WINDOWS, *zip(*keys, strict=True)) if keys else []
    decided = _decide(notifications, rows, found)
    if decided.windows:
        windows = [
            (*key, w.opened_by, w.trailed_by, w.until if w.opened_by else None, w.duration, w.epoch, w.sequence)
            for key, w in decided.windows.items()
        ]
        await conn.execute(_WRITE_WINDOWS, *map(list, zip(*windows, strict=True)))
    if decided.deliveries:
        await conn.execute(_WRITE_DELIVERIES, *map(list, zip(*decided.deliveries, strict=True)))
    return decided.counts


def _decide(notifications: Sequence[NewNotification], rows: Sequence[Row], windows: Sequence[Row]) -> _Decided:
    """Take the calls one after the other, each with the windows as those before it left them."""
    decided = _Decided(counts={n.notification_id: Counter() for n in notifications if n.alerts})
    known = {_window_key(row): _Window(row["free"], row["window_until"]) for row in windows}
    for (i, _, _), found in groupby(rows, itemgetter("i", "user_id", "device_id")):
        alert, scopes = notifications[i - 1], list(found)
        keyed = [] if scopes[0]["barred"] else [(key, row) for row in scopes if (key := _key(row)) is not None]
        state, reason, due_at = DeliveryState.PENDING, Reason(scopes[0]["barred"]), None
        duration = timedelta(seconds=alert.dedupe_window_s)
        if reason:
            state = DeliveryState.SUPPRESSED
        elif alert.called_off:
            state = DeliveryState.CANCELLED
        elif keyed and not any(known[key].free for key, _ in keyed):
            state, reason = DeliveryState.SCHEDULED, Reason.TRAILING
            due_at = min(known[key].until for key, _ in keyed)
            for key, _ in keyed:
                known[key] = replace(known[key], trailed_by=alert.notification_id, duration=duration)
        else:
            for key, row in keyed:
                until = windows[0]["now"] + duration
                place = (row["epoch"], row["sequence"])
                known[key] = _Window(False, until, alert.notification_id, None, duration, *place)
        decided.windows.update((key, known[key]) for key, _ in keyed)
        decided.deliveries.append(_delivery(alert, scopes, state, reason, due_at))
        decided.counts[alert.notification_id][state, reason] += 1
    return decided


def _key(target: Row) -> WindowKey | None:
    return _window_key(target) if target["dedupe_key"] else None


def _window_key(row: Row) -> WindowKey:
    return row["app_id"], row["user_id"], row["device_id"], row["dedupe_key"], row["scope"]


def _delivery(
    alert: NewNotification, scopes: Sequence[Row], state: DeliveryState, reason: Reason, due_at: datetime | None
) -> tuple[object, ...]:
    first = scopes[0]
    return (
        alert.app_id,
        alert.notification_id,
        first["user_id"],
        first["device_id"],
        first["scope"],
        first["epoch"],
        first["sequence"],
        orjson.dumps({row["scope"]: (row["epoch"], row["sequence"]) for row in scopes}).decode(),
        state,
        reason,
        int(alert.lane),
        due_at,
        alert.ttl_s,
    )


async def close_windows(
    conn: Connection, lease_token: str, keys: Sequence[tuple[str, str]], locked: Sequence[WindowKey]
) -> None:
    """Of alerts that were just claimed at the end of their windows: those that are the last of one begin a new one of
    each of their scopes, the others are marked as MERGED. Windows that are not `locked` came since, and stay."""
    await conn.execute(
        """WITH own AS (
               SELECT d.app_id, d.delivery_id, d.user_id, d.device_id, d.notification_id,
                      'ALERT:' || n.dedupe_key AS dedupe_key, told.scope, told.place ->> 0 AS epoch,
                      (told.place ->> 1)::bigint AS sequence
               FROM unnest($2::text[], $3::uuid[]) AS k (app_id, delivery_id)
               JOIN deliveries d USING (app_id, delivery_id) JOIN notifications n USING (app_id, notification_id)
               CROSS JOIN LATERAL jsonb_each(d.cursors) AS told (scope, place)
               WHERE d.lease_token = $1 AND d.reason = 'TRAILING' AND d.cursors IS NOT NULL
           ), found AS (
               -- Nothing trails a window whose last alert was cancelled: then it is the one before that, of those
               -- that were claimed, unless one has passed meanwhile that tells as much.
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
                 -- One that a later alert trails is that one's.
                 AND NOT v.superseded AND coalesce(w.trailed_by = f.notification_id, true))
           UPDATE deliveries d SET reason = CASE WHEN v.superseded THEN 'MERGED' ELSE '' END
           FROM verdict v WHERE (d.app_id, d.delivery_id) = (v.app_id, v.delivery_id)""",
        lease_token,
        [app_id for app_id, _ in keys],
        [delivery_id for _, delivery_id in keys],
        *zip(*locked, strict=True),
    )


async def merge_held(conn: Connection, held: Sequence[ClaimedDelivery]) -> int:
    """Of the alerts of one type that a device's user is spared for now, keep those that no later one stands for.

    What others hold is left to the next time: this comes after other deliveries were locked, and must not wait.
    """
    rows = await conn.fetch(
        """WITH waiting AS (
               SELECT d.app_id, d.user_id, d.device_id, d.delivery_id, d.cursors, d.created_at, n.dedupe_key
               FROM deliveries d
               JOIN (SELECT DISTINCT * FROM unnest($1::text[], $2::text[], $3::text[])
                         AS k (app_id, user_id, device_id)) k USING (app_id, user_id, device_id)
               JOIN notifications n USING (app_id, notification_id)
               WHERE d.state = 'HELD' AND d.reason IN ('QUIET_HOURS', 'DAILY_MAXIMUM') AND d.cursors IS NOT NULL
                 AND n.dedupe_key <> ''
           ), older AS MATERIALIZED (
               SELECT d.app_id, d.delivery_id FROM waiting o JOIN deliveries d USING (app_id, delivery_id)
               WHERE d.state = 'HELD' AND EXISTS (
                   SELECT 1 FROM waiting later
                   WHERE (later.app_id, later.user_id, later.device_id, later.dedupe_key)
                       = (o.app_id, o.user_id, o.device_id, o.dedupe_key)
                     AND (later.created_at, later.delivery_id) > (o.created_at, o.delivery_id)
                     AND later.cursors ?& ARRAY(SELECT jsonb_object_keys(o.cursors)))
               FOR NO KEY UPDATE OF d SKIP LOCKED)
           UPDATE deliveries d SET state = 'SUPPRESSED', reason = 'MERGED', updated_at = syncbeat_now()
           FROM older WHERE (d.app_id, d.delivery_id) = (older.app_id, older.delivery_id)
           RETURNING 1 AS merged""",
        *device_columns(held),
    )
    return len(rows)
