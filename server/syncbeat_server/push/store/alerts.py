"""SQL of alerts, which show something for changes: one delivery per device for all scopes of a call.

In a window of a scope at most two alerts are shown: the first goes out at once; of the later ones, which wait for the
end of the window, only the last. An alert goes out at once if any of its scopes has a free window, and then takes the
windows of all its scopes.
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
from syncbeat_server.push.policy.transitions import Event, reason_after, state_after, states_before
from syncbeat_server.push.store import dedupe_windows
from syncbeat_server.push.store import notifications as notifications_store
from syncbeat_server.push.store.dedupe_windows import AlertWindow, WindowKey, window_key
from syncbeat_server.push.store.state_sql import becomes, state_list, with_reason
from syncbeat_server.storage.postgres.database import Connection, Row

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

_HELD = state_list(states_before(Event.MERGE))


@dataclass(slots=True)
class _Decided:
    """Deliveries to write, the windows that they open or trail, and their counts."""

    deliveries: list[tuple[object, ...]] = field(default_factory=list)
    windows: dict[WindowKey, AlertWindow] = field(default_factory=dict)
    counts: dict[str, Counter[tuple[DeliveryState, Reason]]] = field(default_factory=dict)


async def insert(
    conn: Connection, notifications: Sequence[NewNotification]
) -> Mapping[str, Mapping[tuple[DeliveryState, Reason], int]]:
    """Write the deliveries of notifications, alerts and others, and return counts by (state, reason) of each."""
    shown = [n for n in notifications if n.is_alert]
    if not shown:
        return await notifications_store.insert_deliveries(conn, notifications)
    # All windows in one order, before any is read. Devices that become targets after that are left out: to lock their
    # windows now, with others locked, could be a deadlock.
    targets = await dedupe_windows.lock_targeted(conn, notifications)
    counts = await notifications_store.insert_deliveries(conn, _with_targets(notifications, targets))
    of_alerts = [row for row in targets if notifications[row["i"] - 1].is_alert]
    return counts | dict(await _insert_alerts(conn, notifications, of_alerts))


def _with_targets(notifications: Sequence[NewNotification], rows: Sequence[Row]) -> list[NewNotification]:
    """Return the notifications that are no alerts, with the devices whose windows are locked as their targets."""
    targets: dict[int, list[Target]] = {i: [] for i, n in enumerate(notifications, 1) if not n.is_alert}
    for row in rows:
        if row["i"] in targets:
            cursor = {"epoch": row["epoch"], "sequence": row["sequence"]}
            targets[row["i"]].append(
                Target(user_id=row["user_id"], device_id=row["device_id"], scope=row["scope"] or None, **cursor)
            )
    return [replace(notifications[i - 1], targets=tuple(found)) for i, found in targets.items()]


async def _insert_alerts(
    conn: Connection, notifications: Sequence[NewNotification], rows: Sequence[Row]
) -> Mapping[str, Mapping[tuple[DeliveryState, Reason], int]]:
    """Write the deliveries of alerts to their targets, whose windows are locked."""
    decided = _Decided(counts={n.notification_id: Counter() for n in notifications if n.is_alert})
    keys = [key for row in rows if (key := _key(row)) is not None]
    known, now = await dedupe_windows.read_alert_windows(conn, keys) if keys else ({}, None)
    for (i, _, _), scopes in groupby(rows, itemgetter("i", "user_id", "device_id")):
        _decide(decided, notifications[i - 1], list(scopes), known, now)
    if decided.windows:
        await dedupe_windows.write_alert_windows(conn, decided.windows)
    if decided.deliveries:
        await conn.execute(_WRITE_DELIVERIES, *map(list, zip(*decided.deliveries, strict=True)))
    return decided.counts


def _decide(
    decided: _Decided,
    alert: NewNotification,
    scopes: Sequence[Row],
    known: dict[WindowKey, AlertWindow],
    now: datetime | None,
) -> None:
    """Decide about an alert to one device, with the windows as the calls before it left them in `known`."""
    keyed = [] if scopes[0]["barred"] else [(key, row) for row in scopes if (key := _key(row)) is not None]
    event, reason, due_at = Event.ACCEPT, Reason(scopes[0]["barred"]), None
    duration = timedelta(seconds=alert.dedupe_window_s)
    if reason:
        event = Event.SUPPRESS
    elif alert.called_off:
        event = Event.ACCEPT_CANCELLED
    elif keyed and not any(known[key].free for key, _ in keyed):
        event, reason = Event.TRAIL, reason_after(Event.TRAIL)
        due_at = min(known[key].until for key, _ in keyed)
        for key, _ in keyed:
            known[key] = replace(known[key], trailed_by=alert.notification_id, duration=duration)
    elif now is not None:
        for key, row in keyed:
            cursor = (row["epoch"], row["sequence"])
            known[key] = AlertWindow(False, now + duration, alert.notification_id, None, duration, *cursor)
    decided.windows.update((key, known[key]) for key, _ in keyed)
    decided.deliveries.append(_delivery(alert, scopes, state_after(event), reason, due_at))
    decided.counts[alert.notification_id][state_after(event), reason] += 1


def _key(target: Row) -> WindowKey | None:
    return window_key(target) if target["dedupe_key"] else None


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


async def merge_held(conn: Connection, held: Sequence[ClaimedDelivery]) -> int:
    """Drop held alerts whose scopes a later alert of the same type covers, per device, and return their number.

    Rows that others have locked are left to the next time: other deliveries are locked already, so this must not wait.
    """
    rows = await conn.fetch(
        f"""WITH waiting AS (
               SELECT d.app_id, d.user_id, d.device_id, d.delivery_id, d.cursors, d.created_at, n.dedupe_key
               FROM deliveries d
               JOIN (SELECT DISTINCT * FROM unnest($1::text[], $2::text[], $3::text[])
                         AS k (app_id, user_id, device_id)) k USING (app_id, user_id, device_id)
               JOIN notifications n USING (app_id, notification_id)
               WHERE d.state IN {_HELD} AND d.reason IN ('QUIET_HOURS', 'DAILY_MAXIMUM') AND d.cursors IS NOT NULL
                 AND n.dedupe_key <> ''
           ), older AS MATERIALIZED (
               SELECT d.app_id, d.delivery_id FROM waiting o JOIN deliveries d USING (app_id, delivery_id)
               WHERE d.state IN {_HELD} AND EXISTS (
                   SELECT 1 FROM waiting later
                   WHERE (later.app_id, later.user_id, later.device_id, later.dedupe_key)
                       = (o.app_id, o.user_id, o.device_id, o.dedupe_key)
                     AND (later.created_at, later.delivery_id) > (o.created_at, o.delivery_id)
                     AND later.cursors ?& ARRAY(SELECT jsonb_object_keys(o.cursors)))
               FOR NO KEY UPDATE OF d SKIP LOCKED)
           UPDATE deliveries d SET state = {becomes(Event.MERGE)}, reason = {with_reason(Event.MERGE)},
                  updated_at = syncbeat_now()
           FROM older WHERE (d.app_id, d.delivery_id) = (older.app_id, older.delivery_id)
           RETURNING 1 AS merged""",
        *device_columns(held),
    )
    return len(rows)
