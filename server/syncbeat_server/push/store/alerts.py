"""SQL of alerts, which show something for changes: one delivery per device for all scopes of a call.

In a window of a scope at most two alerts are shown: the first goes out at once; of the later ones, which wait for the
end of the window, only the last. An alert goes out at once if any of its scopes has a free window, and then takes the
windows of all its scopes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import groupby
from operator import itemgetter

import orjson

from syncbeat_server.push.model import ClaimedDelivery, DeliveryState, NewNotification, Reason, device_columns
from syncbeat_server.push.policy.transitions import Event, reason_after, state_after, states_before
from syncbeat_server.push.store import dedupe
from syncbeat_server.push.store import notifications as notifications_store
from syncbeat_server.push.store.dedupe import IS_FREE, AlertWindow, WindowKey
from syncbeat_server.push.store.state_sql import becomes, state_list, with_reason
from syncbeat_server.push.store.targets import TARGETED, columns
from syncbeat_server.storage.postgres.database import Connection, Row

_FIND = f"""{TARGETED}
SELECT t.i, t.app_id, t.user_id, t.device_id, t.dedupe_key, t.scope, t.epoch, t.sequence, t.barred,
       w.window_until, coalesce({IS_FREE}, true) AS free, syncbeat_now() AS now
FROM target t LEFT JOIN dedupe_windows w USING (app_id, user_id, device_id, dedupe_key, scope)
ORDER BY t.i, t.user_id, t.device_id, t.scope
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
    # All windows in one order, before any is read.
    await dedupe.lock_targeted(conn, notifications)
    others = await notifications_store.insert_deliveries(conn, [n for n in notifications if not n.is_alert])
    return others | dict(await _insert_alerts(conn, shown))


async def _insert_alerts(
    conn: Connection, alerts: Sequence[NewNotification]
) -> Mapping[str, Mapping[tuple[DeliveryState, Reason], int]]:
    """Write the deliveries of alerts, whose windows are locked."""
    rows = await conn.fetch(_FIND, *columns(alerts))
    decided = _decide(alerts, rows)
    if decided.windows:
        await dedupe.write_alert_windows(conn, decided.windows)
    if decided.deliveries:
        await conn.execute(_WRITE_DELIVERIES, *map(list, zip(*decided.deliveries, strict=True)))
    return decided.counts


def _decide(alerts: Sequence[NewNotification], rows: Sequence[Row]) -> _Decided:
    """Decide about the calls in their order, each with the windows as the calls before it left them."""
    decided = _Decided(counts={alert.notification_id: Counter() for alert in alerts})
    known: dict[WindowKey, AlertWindow] = {}
    for (i, _, _), found in groupby(rows, itemgetter("i", "user_id", "device_id")):
        alert, scopes = alerts[i - 1], list(found)
        keyed = [] if scopes[0]["barred"] else list(_keyed(scopes))
        for key, row in keyed:
            known.setdefault(key, AlertWindow(row["free"], row["window_until"]))
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
        else:
            until = scopes[0]["now"] + duration
            for key, row in keyed:
                place = (row["epoch"], row["sequence"])
                known[key] = AlertWindow(False, until, alert.notification_id, None, duration, *place)
        state = state_after(event)
        decided.windows.update((key, known[key]) for key, _ in keyed)
        decided.deliveries.append(_delivery(alert, scopes, state, reason, due_at))
        decided.counts[alert.notification_id][state, reason] += 1
    return decided


def _keyed(scopes: Sequence[Row]) -> Iterator[tuple[WindowKey, Row]]:
    for row in scopes:
        if row["dedupe_key"]:
            yield (row["app_id"], row["user_id"], row["device_id"], row["dedupe_key"], row["scope"]), row


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
