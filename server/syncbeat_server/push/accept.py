"""Changes deliveries inside the transactions of other features: accepts, cancels and erases them."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from syncbeat_server.push.model import Acceptance, DeliveryState, NewNotification, Reason
from syncbeat_server.push.store import alerts, dedupe_windows, fanout, lifecycle, user_erasure
from syncbeat_server.push.store import notifications as notifications_store
from syncbeat_server.storage.postgres.database import Connection


def new_notification_id(now: datetime) -> str:
    """Return a new UUID that sorts by `now` (RFC 9562, version 7)."""
    stamp = int(now.timestamp() * 1000) << 80
    return str(uuid.UUID(int=stamp | 0x7 << 76 | secrets.randbits(12) << 64 | 0b10 << 62 | secrets.randbits(62)))


async def accept(conn: Connection, notifications: Sequence[NewNotification]) -> list[Acceptance]:
    """Write notifications and a delivery for each device that they target, and return the counts.

    For a scheduled notification, and for one with more than 1,000 devices, only a job is written, which writes the
    deliveries later (`expand`); then the count is an estimate, and none counts as suppressed yet.
    """
    if not notifications:
        return []
    deferred = await fanout.count_deferred(conn, notifications)
    # A due time that has passed means now, and makes a notification no older than the others.
    now = [replace(n, due_at=None) for n in notifications if n.notification_id not in deferred]
    later = [n for n in notifications if n.notification_id in deferred]
    counts = await alerts.insert(conn, now) if now else {}
    accepted = {name: sum(by_state.values()) for name, by_state in counts.items()}
    await notifications_store.insert_notifications(conn, [*now, *later], accepted)
    if later:
        await fanout.insert_jobs(conn, later, [deferred[n.notification_id] for n in later])
    return [
        Acceptance(
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
    """Write the next deliveries of due jobs of these apps, and return their number; None if no job is due."""
    pages = await fanout.lock_next_pages(conn, app_ids)
    return await fanout.write_pages(conn, pages) if pages else None


async def close_windows(conn: Connection, lease_token: str, keys: Sequence[tuple[str, str]]) -> None:
    """Close the dedupe windows that the deliveries claimed under this token trailed, and let them open new ones."""
    of_alerts = await dedupe_windows.lock_trailed(conn, lease_token, keys)
    if of_alerts:
        await dedupe_windows.close_alerts(conn, lease_token, keys, of_alerts)
    await dedupe_windows.close_trailed(conn, lease_token, keys)


async def cancel_waiting(conn: Connection, app_id: str, user_id: str, device_id: str, *, stays: bool) -> None:
    """Cancel what waits for a device that has left its user, or, with `stays`, has lost its token.

    The dedupe windows of a device that goes are deleted with it.
    """
    await lifecycle.cancel_waiting(conn, app_id, user_id, device_id, Reason.DEVICE_GONE)
    if stays:
        await dedupe_windows.delete_windows(conn, app_id, user_id, device_id)


async def cancel_user(conn: Connection, app_id: str, user_id: str) -> None:
    """Cancel all that waits for the devices of a user who is disabled."""
    await lifecycle.cancel_waiting(conn, app_id, user_id, None, Reason.USER_DISABLED)
    await dedupe_windows.delete_windows(conn, app_id, user_id, None)


async def erase_user(conn: Connection, app_id: str, user_id: str) -> int:
    """Delete the deliveries of a user who is deleted; return how many waited. The windows go with the devices."""
    return await user_erasure.erase_user(conn, app_id, user_id)
