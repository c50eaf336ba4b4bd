"""What other features do to deliveries inside their own transactions: accept new ones, cancel waiting ones."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Sequence
from datetime import datetime

from syncbeat_server.push import store
from syncbeat_server.push.model import Accepted, DeliveryState, NewNotification, Reason
from syncbeat_server.storage.postgres import Connection


def new_notification_id(now: datetime) -> str:
    """A UUID that sorts by the time it was made (RFC 9562, version 7)."""
    stamp = int(now.timestamp() * 1000) << 80
    return str(uuid.UUID(int=stamp | 0x7 << 76 | secrets.randbits(12) << 64 | 0b10 << 62 | secrets.randbits(62)))


async def accept(conn: Connection, notifications: Sequence[NewNotification]) -> list[Accepted]:
    """Write notifications and a delivery for each device they target; how many, and how many of those suppressed."""
    if not notifications:
        return []
    await store.insert_notifications(conn, notifications)
    counts = await store.insert_deliveries(conn, notifications)
    return [
        Accepted(
            notification.notification_id,
            delivery_count=sum(counts[notification.notification_id].values()),
            suppressed_count=sum(
                n for (state, _), n in counts[notification.notification_id].items() if state is DeliveryState.SUPPRESSED
            ),
        )
        for notification in notifications
    ]


async def cancel_waiting(conn: Connection, app_id: str, user_id: str, device_id: str) -> None:
    """Cancel what waits for a device that is its user's no more."""
    await store.cancel_waiting(conn, app_id, user_id, device_id, Reason.DEVICE_GONE)
