"""SQL of collapse keys: decides which message of a key may be sent to a device now."""

from __future__ import annotations

from collections.abc import Sequence

from syncbeat_server.push.model import ClaimedDelivery, DeliveryUpdate, Reason
from syncbeat_server.push.policy.retry import postpone
from syncbeat_server.push.policy.transitions import Event, update
from syncbeat_server.push.store.state_sql import HANDED_OVER, IN_FLIGHT
from syncbeat_server.storage.postgres.database import Connection

# Longer than most attempts take. The earlier message comes back after the later one, so that they do not meet again.
_EARLIER_WAITS_S = 2.0
_LATER_WAITS_S = 1.0


async def keep_order(conn: Connection, deliveries: Sequence[ClaimedDelivery]) -> dict[str, DeliveryUpdate]:
    """Return, by id, the updates of claimed deliveries that another one of their collapse key replaces or delays.

    No attempt of an earlier message begins once a later one was handed over, or may have been; and while one of them is
    in flight, the others wait for its outcome. Claims are committed before this looks, so that of two workers with one
    message each at least one sees the other's.
    """
    rows = await conn.fetch(
        f"""SELECT k.delivery_id,
                  EXISTS (SELECT 1 FROM deliveries o
                          WHERE (o.app_id, o.user_id, o.device_id, o.collapse_key)
                              = (own.app_id, own.user_id, own.device_id, own.collapse_key)
                            AND o.collapse_key <> '' AND (o.ambiguous OR o.state IN {HANDED_OVER})
                            AND (o.collapse_order, o.notification_id)
                              > (own.collapse_order, own.notification_id)) AS replaced,
                  coalesce(sent.later, false) AS later, coalesce(sent.earlier, false) AS earlier
           FROM unnest($1::text[], $2::text[]) AS k (app_id, delivery_id)
           JOIN deliveries own ON own.app_id = k.app_id AND own.delivery_id = k.delivery_id::uuid
           CROSS JOIN LATERAL (
               SELECT bool_or((o.collapse_order, o.notification_id)
                              > (own.collapse_order, own.notification_id)) AS later,
                      bool_or((o.collapse_order, o.notification_id) < (own.collapse_order, own.notification_id)
                              AND o.lease_token <> own.lease_token) AS earlier
               FROM deliveries o
               WHERE (o.app_id, o.user_id, o.device_id, o.collapse_key)
                   = (own.app_id, own.user_id, own.device_id, own.collapse_key)
                 AND o.collapse_key <> '' AND o.state = {IN_FLIGHT}) sent
           WHERE own.collapse_key <> ''""",
        [d.app_id for d in deliveries],
        [d.delivery_id for d in deliveries],
    )
    by_id = {delivery.delivery_id: delivery for delivery in deliveries}
    found = {}
    for row in rows:
        delivery = by_id[row["delivery_id"]]
        if row["replaced"]:
            found[delivery.delivery_id] = update(delivery, Event.SKIP, Reason.REPLACED)
        elif row["later"] or row["earlier"]:
            wait_s = _EARLIER_WAITS_S if row["later"] else _LATER_WAITS_S
            found[delivery.delivery_id] = postpone(delivery, Reason.NONE, wait_s)
    return found
