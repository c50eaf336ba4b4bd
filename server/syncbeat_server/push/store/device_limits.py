"""SQL of what bounds the pushes to a device: the day's maximum, and what its system lets through."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

import orjson

from syncbeat_server.directory.store.device_locks import lock_in_order
from syncbeat_server.push.model import ClaimedDelivery, device_columns
from syncbeat_server.push.policy import quiet_hours, wakeup_shares
from syncbeat_server.push.policy.wakeup_shares import Purse
from syncbeat_server.storage.postgres.database import Connection


class Counted(NamedTuple):
    """The ids of deliveries that may be shown, and of those that may be if one that is under way is not."""

    may: set[str]
    perhaps: set[str]


async def count_shown(conn: Connection, capped: Sequence[tuple[ClaimedDelivery, int, datetime]]) -> Counted:
    """Count deliveries into the day of their device, as far as its maximum goes.

    Each comes with the most of its device's day, and when that day began. One that was counted before may be shown. An
    attempt that shows nothing gives its place back (`queue.finish`), so that nobody waits for a day because of it.
    """
    deliveries = [delivery for delivery, _, _ in capped]
    columns = device_columns(deliveries)
    await lock_in_order(conn, *columns)
    rows = await conn.fetch(
        """SELECT k.delivery_id, own.counted_at IS NOT NULL AS counted,
                  found.shown, found.under_way
           FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::timestamptz[])
                AS k (app_id, user_id, device_id, delivery_id, since)
           JOIN deliveries own ON own.app_id = k.app_id AND own.delivery_id = k.delivery_id::uuid
           CROSS JOIN LATERAL (
               SELECT count(*) FILTER (WHERE d.state <> 'IN_FLIGHT') AS shown,
                      count(*) FILTER (WHERE d.state = 'IN_FLIGHT') AS under_way
               FROM deliveries d
               WHERE (d.app_id, d.user_id, d.device_id) = (k.app_id, k.user_id, k.device_id)
                 AND d.counted_at >= k.since) found""",
        *columns,
        [d.delivery_id for d in deliveries],
        [since for _, _, since in capped],
    )
    found = {row["delivery_id"]: row for row in rows}
    more: Counter[tuple[str, str, str]] = Counter()
    may, perhaps, fresh = set[str](), set[str](), []
    for delivery, most, _ in capped:
        row = found.get(delivery.delivery_id)
        if row is None or row["counted"]:
            may.add(delivery.delivery_id)
        elif row["shown"] + row["under_way"] + more[delivery.device] < most:
            more[delivery.device] += 1
            may.add(delivery.delivery_id)
            fresh.append(delivery)
        elif row["shown"] < most:
            perhaps.add(delivery.delivery_id)
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
    return Counted(may, perhaps)


async def take_wakes(conn: Connection, wakes: Sequence[ClaimedDelivery]) -> Mapping[str, float]:
    """Spend the wake-ups of these devices: for those that have none left, the seconds until one more, by delivery."""
    budgets = {d.device: budget for d in wakes if (budget := quiet_hours.wake_budget(d.platform)) is not None}
    if not budgets:
        return {}
    columns = [[device[column] for device in budgets] for column in range(3)]
    await conn.execute(
        """INSERT INTO wake_budgets AS b (app_id, user_id, device_id, tokens, filled_at)
           SELECT app_id, user_id, device_id, most, syncbeat_now()
           FROM unnest($1::text[], $2::text[], $3::text[], $4::float8[]) AS k (app_id, user_id, device_id, most)
           JOIN devices v USING (app_id, user_id, device_id)
           ORDER BY app_id, user_id, device_id
           -- Locks those that are there, before the foreign keys of new ones lock devices.
           ON CONFLICT (app_id, user_id, device_id) DO UPDATE SET tokens = b.tokens WHERE false""",
        *columns,
        [budget.most for budget in budgets.values()],
    )
    rows = await conn.fetch(
        """SELECT b.app_id, b.user_id, b.device_id, b.tokens, b.spent,
                  extract(epoch FROM syncbeat_now() - b.filled_at)::float8 AS passed_s
           FROM unnest($1::text[], $2::text[], $3::text[]) AS k (app_id, user_id, device_id)
           JOIN wake_budgets b USING (app_id, user_id, device_id)
           ORDER BY app_id, user_id, device_id FOR UPDATE OF b""",
        *columns,
    )
    purses = {}
    for row in rows:
        device = (row["app_id"], row["user_id"], row["device_id"])
        purse = Purse(row["tokens"], orjson.loads(row["spent"]))
        purses[device] = wakeup_shares.refilled(purse, budgets[device], row["passed_s"])
    waits = {}
    for delivery in wakes:
        if delivery.device in purses:
            purse, wait_s = wakeup_shares.spend(
                purses[delivery.device], budgets[delivery.device], wakeup_shares.sharers(delivery)
            )
            purses[delivery.device] = purse
            if wait_s > 0.0:
                waits[delivery.delivery_id] = wait_s
    await conn.execute(
        """UPDATE wake_budgets b SET tokens = k.tokens, spent = k.spent::jsonb, filled_at = syncbeat_now()
           FROM unnest($1::text[], $2::text[], $3::text[], $4::float8[], $5::text[])
                AS k (app_id, user_id, device_id, tokens, spent)
           WHERE (b.app_id, b.user_id, b.device_id) = (k.app_id, k.user_id, k.device_id)""",
        *([device[column] for device in purses] for column in range(3)),
        [purse.tokens for purse in purses.values()],
        [orjson.dumps(purse.spent).decode() for purse in purses.values()],
    )
    return waits


async def merge_held(conn: Connection, held: Sequence[ClaimedDelivery]) -> int:
    """Of the wake-ups that wait for the budget of one device and tell of one scope, keep the newest; how many go.

    What others hold is left to the next time: this comes after other deliveries were locked, and must not wait.
    """
    rows = await conn.fetch(
        """WITH older AS MATERIALIZED (
           SELECT d.app_id, d.delivery_id FROM deliveries d
           JOIN (SELECT DISTINCT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[])
                     AS k (app_id, user_id, device_id, scope)) k USING (app_id, user_id, device_id, scope)
           WHERE d.state = 'HELD' AND d.reason = 'WAKE_BUDGET'
             AND EXISTS (SELECT 1 FROM deliveries newer
                         WHERE (newer.app_id, newer.user_id, newer.device_id, newer.scope)
                             = (d.app_id, d.user_id, d.device_id, d.scope)
                           AND newer.state = 'HELD' AND newer.reason = 'WAKE_BUDGET'
                           AND newer.epoch = d.epoch
                           AND (newer.sequence, newer.delivery_id) > (d.sequence, d.delivery_id))
           FOR NO KEY UPDATE OF d SKIP LOCKED)
           UPDATE deliveries d SET state = 'SUPPRESSED', reason = 'MERGED', updated_at = syncbeat_now()
           FROM older WHERE (d.app_id, d.delivery_id) = (older.app_id, older.delivery_id)
           RETURNING 1 AS merged""",
        *device_columns(held),
        [d.scope for d in held],
    )
    return len(rows)
