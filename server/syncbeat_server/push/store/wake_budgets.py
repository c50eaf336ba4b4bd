"""SQL of `wake_budgets`: spends the wake-ups that a device's system delivers, and merges those that wait for one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import orjson

from syncbeat_server.push.model import ClaimedDelivery, device_columns
from syncbeat_server.push.policy import wake_budget
from syncbeat_server.push.policy.transitions import Event, states_before
from syncbeat_server.push.policy.wake_budget import Balance
from syncbeat_server.push.store.state_sql import becomes, state_list, with_reason
from syncbeat_server.storage.postgres.database import Connection

_HELD = state_list(states_before(Event.MERGE))


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
