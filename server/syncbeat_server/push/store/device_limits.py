"""SQL of the limits on pushes to a device: the daily maximum, and the wake-ups that its system delivers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

import orjson

from syncbeat_server.directory.store.device_locks import lock_in_order
from syncbeat_server.push.model import ClaimedDelivery, device_columns
from syncbeat_server.push.policy import wake_budget
from syncbeat_server.push.policy.transitions import Event, states_before
from syncbeat_server.push.policy.wake_budget import Balance
from syncbeat_server.push.store.state_sql import IN_FLIGHT, becomes, state_list, with_reason
from syncbeat_server.ratelimit.policy.decision import Bound, decide
from syncbeat_server.storage.postgres.database import Connection

_HELD = state_list(states_before(Event.MERGE))


class DailyCount(NamedTuple):
    """Ids of deliveries that may be shown, and of those that may be if an attempt under way shows nothing."""

    allowed: set[str]
    undecided: set[str]


async def count_shown(conn: Connection, capped: Sequence[tuple[ClaimedDelivery, int, datetime]]) -> DailyCount:
    """Count deliveries towards the day of their device, up to its maximum.

    Each comes with the maximum of its device and the beginning of its day. One that was counted before may be shown. An
    attempt that shows nothing gives its place back (`queue.finish`), so that no delivery waits for a day because of it.
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


async def spend_wake_budgets(conn: Connection, wakes: Sequence[ClaimedDelivery]) -> Mapping[str, float]:
    """Spend the wake-ups of the devices. Returns the seconds to wait, by delivery, where none is left."""
    budgets = {d.device: budget for d in wakes if (budget := wake_budget.wake_budget(d.platform)) is not None}
    if not budgets:
        return {}
    columns = [[device[column] for device in budgets] for column in range(3)]
    await conn.execute(
        """INSERT INTO wake_budgets AS b (app_id, user_id, device_id, tokens, filled_at)
           SELECT app_id, user_id, device_id, most, syncbeat_now()
           FROM unnest($1::text[], $2::text[], $3::text[], $4::float8[]) AS k (app_id, user_id, device_id, most)
           JOIN devices v USING (app_id, user_id, device_id)
           ORDER BY app_id, user_id, device_id
           -- Locks existing rows before the foreign keys of new ones lock devices.
           ON CONFLICT (app_id, user_id, device_id) DO UPDATE SET tokens = b.tokens WHERE false""",
        *columns,
        [budget.burst for budget in budgets.values()],
    )
    rows = await conn.fetch(
        """SELECT b.app_id, b.user_id, b.device_id, b.tokens, b.spent,
                  extract(epoch FROM syncbeat_now() - b.filled_at)::float8 AS passed_s
           FROM unnest($1::text[], $2::text[], $3::text[]) AS k (app_id, user_id, device_id)
           JOIN wake_budgets b USING (app_id, user_id, device_id)
           ORDER BY app_id, user_id, device_id FOR UPDATE OF b""",
        *columns,
    )
    balances = {}
    for row in rows:
        device = (row["app_id"], row["user_id"], row["device_id"])
        balance = Balance(row["tokens"], orjson.loads(row["spent"]))
        balances[device] = wake_budget.refill(balance, budgets[device], row["passed_s"])
    waits = {}
    for delivery in wakes:
        if delivery.device in balances:
            balance, wait_s = wake_budget.spend(
                balances[delivery.device], budgets[delivery.device], wake_budget.share_holders(delivery)
            )
            balances[delivery.device] = balance
            if wait_s > 0.0:
                waits[delivery.delivery_id] = wait_s
    await conn.execute(
        """UPDATE wake_budgets b SET tokens = k.tokens, spent = k.spent::jsonb, filled_at = syncbeat_now()
           FROM unnest($1::text[], $2::text[], $3::text[], $4::float8[], $5::text[])
                AS k (app_id, user_id, device_id, tokens, spent)
           WHERE (b.app_id, b.user_id, b.device_id) = (k.app_id, k.user_id, k.device_id)""",
        *([device[column] for device in balances] for column in range(3)),
        [balance.tokens for balance in balances.values()],
        [orjson.dumps(balance.spent).decode() for balance in balances.values()],
    )
    return waits


async def merge_held(conn: Connection, held: Sequence[ClaimedDelivery]) -> int:
    """Drop held wake-ups for which a newer one of the same device and scope is held, and return their number.

    Rows that others have locked are left to the next time: other deliveries are locked already, so this must not wait.
    """
    rows = await conn.fetch(
        f"""WITH older AS MATERIALIZED (
           SELECT d.app_id, d.delivery_id FROM deliveries d
           JOIN (SELECT DISTINCT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[])
                     AS k (app_id, user_id, device_id, scope)) k USING (app_id, user_id, device_id, scope)
           WHERE d.state IN {_HELD} AND d.reason = 'WAKE_BUDGET'
             AND EXISTS (SELECT 1 FROM deliveries newer
                         WHERE (newer.app_id, newer.user_id, newer.device_id, newer.scope)
                             = (d.app_id, d.user_id, d.device_id, d.scope)
                           AND newer.state IN {_HELD} AND newer.reason = 'WAKE_BUDGET'
                           AND newer.epoch = d.epoch
                           AND (newer.sequence, newer.delivery_id) > (d.sequence, d.delivery_id))
           FOR NO KEY UPDATE OF d SKIP LOCKED)
           UPDATE deliveries d SET state = {becomes(Event.MERGE)}, reason = {with_reason(Event.MERGE)},
                  updated_at = syncbeat_now()
           FROM older WHERE (d.app_id, d.delivery_id) = (older.app_id, older.delivery_id)
           RETURNING 1 AS merged""",
        *device_columns(held),
        [d.scope for d in held],
    )
    return len(rows)
