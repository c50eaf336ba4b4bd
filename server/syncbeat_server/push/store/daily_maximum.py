"""SQL of the daily maximum: takes a place among the messages that a device is shown in its day, and gives it back.

An attempt takes its place before it is made (ADR 101). `queue.finish` and `queue.release` give back those that showed
nothing, by the expressions below.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from syncbeat_server.directory.store.device_locks import lock_in_order
from syncbeat_server.push.model import ClaimedDelivery, device_columns
from syncbeat_server.push.policy.transitions import Event
from syncbeat_server.push.store.state_sql import IN_FLIGHT, becomes
from syncbeat_server.ratelimit.policy.decision import Bound, decide
from syncbeat_server.storage.postgres.database import Connection

PLACE_AFTER_ATTEMPT = f"""
               CASE WHEN k.state = {becomes(Event.SEND)} OR k.reason = 'AMBIGUOUS' OR d.ambiguous
                    THEN d.counted_at END"""
"""Expression for `deliveries.counted_at` after an attempt: what was shown, or may have been, keeps its place."""

PLACE_WITHOUT_ATTEMPT = "CASE WHEN d.ambiguous THEN d.counted_at END"
"""The same for one that is given back before its attempt; an earlier attempt may have shown it."""


class DailyCount(NamedTuple):
    """Ids of deliveries that may be shown, and of those that may be if an attempt under way shows nothing."""

    allowed: set[str]
    undecided: set[str]


async def count_shown(conn: Connection, capped: Sequence[tuple[ClaimedDelivery, int, datetime]]) -> DailyCount:
    """Count deliveries towards the day of their device, up to its maximum.

    Each comes with the maximum of its device and the beginning of its day. One that was counted before may be shown. An
    attempt that shows nothing gives its place back, so that no delivery waits for a day because of it.
    """
    deliveries = [delivery for delivery, _, _ in capped]
    columns = device_columns(deliveries)
    await lock_in_order(conn, *columns)
    rows = await conn.fetch(
        f"""SELECT k.delivery_id, own.counted_at IS NOT NULL AS counted,
                  found.shown, found.under_way
           FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::timestamptz[])
                AS k (app_id, user_id, device_id, delivery_id, since)
           JOIN deliveries own ON own.app_id = k.app_id AND own.delivery_id = k.delivery_id::uuid
           CROSS JOIN LATERAL (
               SELECT count(*) FILTER (WHERE d.state <> {IN_FLIGHT}) AS shown,
                      count(*) FILTER (WHERE d.state = {IN_FLIGHT}) AS under_way
               FROM deliveries d
               WHERE (d.app_id, d.user_id, d.device_id) = (k.app_id, k.user_id, k.device_id)
                 AND d.counted_at >= k.since) found""",
        *columns,
        [d.delivery_id for d in deliveries],
        [since for _, _, since in capped],
    )
    found = {row["delivery_id"]: row for row in rows}
    counted_now: Counter[tuple[str, str, str]] = Counter()
    allowed, undecided, fresh = set[str](), set[str](), []
    for delivery, most, _ in capped:
        row = found.get(delivery.delivery_id)
        if row is None or row["counted"]:
            allowed.add(delivery.delivery_id)
        elif decide(Bound(most), row["shown"] + row["under_way"] + counted_now[delivery.device]).allowed:
            counted_now[delivery.device] += 1
            allowed.add(delivery.delivery_id)
            fresh.append(delivery)
        elif decide(Bound(most), row["shown"]).allowed:
            undecided.add(delivery.delivery_id)
    await conn.execute(
        """WITH own AS MATERIALIZED (
               SELECT d.app_id, d.delivery_id FROM deliveries d
               JOIN unnest($1::text[], $2::uuid[], $3::uuid[]) AS k (app_id, delivery_id, lease_token)
                    USING (app_id, delivery_id, lease_token)
               ORDER BY d.app_id, d.delivery_id FOR NO KEY UPDATE OF d)
           UPDATE deliveries d SET counted_at = syncbeat_now()
           FROM own WHERE (d.app_id, d.delivery_id) = (own.app_id, own.delivery_id)""",
        [d.app_id for d in fresh],
        [d.delivery_id for d in fresh],
        [d.lease_token for d in fresh],
    )
    return DailyCount(allowed, undecided)
