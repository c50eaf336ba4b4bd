"""What other features do to deliveries inside their own transactions: accept new ones, cancel waiting ones."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from syncbeat_server.push.model import Accepted, DeliveryState, NewNotification, Reason
from syncbeat_server.push.store import alerts, dedupe, fanout
from syncbeat_server.push.store import notifications as notifications_store
from syncbeat_server.storage.postgres.database import Connection


def new_notification_id(now: datetime) -> str:
    """A UUID that sorts by the time it was made (RFC 9562, version 7)."""
    stamp = int(now.timestamp() * 1000) << 80
    return str(uuid.UUID(int=stamp | 0x7 << 76 | secrets.randbits(12) << 64 | 0b10 << 62 | secrets.randbits(62)))


async def accept(conn: Connection, notifications: Sequence[NewNotification]) -> list[Accepted]:
    """Write notifications and a delivery for each device they target; how many, and how many of those suppressed.

    Of a scheduled notification, and of one for more than 1,000 devices, only the job is written that writes its
    deliveries (`expand`); how many is an estimate, and none of them counts as suppressed yet.
    """
    if not notifications:
        return []
    deferred = await fanout.count_deferred(conn, notifications)
    # What was to go out in the past goes out now, and is no older than what else does.
    now = [replace(n, due_at=None) for n in notifications if n.notification_id not in deferred]
    later = [n for n in notifications if n.notification_id in deferred]
    counts = await alerts.write(conn, now) if now else {}
    accepted = {name: sum(by_state.values()) for name, by_state in counts.items()}
    await notifications_store.insert_notifications(conn, [*now, *later], accepted)
    if later:
        await fanout.start(conn, later, [deferred[n.notification_id] for n in later])
    return [
        Accepted(
            notification.notification_id,
            delivery_count=(accepted | deferred)[notification.notification_id],
            suppressed_count=sum(
                n
                for (state, _), n in counts.get(notification.notification_id, {}).items()
                if state is DeliveryState.SUPPRESSED
            ),
        )
        for notification in notifications
    ]


async def expand(conn: Connection, app_ids: Sequence[str]) -> int | None:
    """Write the next deliveries of what is due of these apps: how many; None when there are none to write."""
    pages = await fanout.next_pages(conn, app_ids)
    return await fanout.write(conn, pages) if pages else None


async def close_windows(conn: Connection, lease_token: str, keys: Sequence[tuple[str, str]]) -> None:
    """Of deliveries that were just claimed at the end of a window: say which begins the next, and with which cursor."""
    of_alerts = await dedupe.lock_trailed(conn, lease_token, keys)
    if of_alerts:
        await alerts.close_windows(conn, lease_token, keys, of_alerts)
    await dedupe.close_trailed(conn, lease_token, keys)


async def cancel_waiting(conn: Connection, app_id: str, user_id: str, device_id: str, *, stays: bool) -> None:
    """Cancel what waits for a device that is its user's no more, or `stays` without its token.

    The dedupe windows of one that goes go with it.
    """
    await notifications_store.cancel_waiting(conn, app_id, user_id, device_id, Reason.DEVICE_GONE)
    if stays:
        await notifications_store.close_windows(conn, app_id, user_id, device_id)
