"""What becomes of a user's pushes, in the caller's transaction, when it is shut out or erased."""

from __future__ import annotations

from syncbeat_server.push import store
from syncbeat_server.push.model import Reason
from syncbeat_server.storage.postgres import Connection


async def cancel_of_user(conn: Connection, app_id: str, user_id: str) -> None:
    """Cancel whatever waits for a user's devices."""
    await store.cancel_waiting(conn, app_id, user_id, None, Reason.USER_DISABLED)
    await store.close_windows(conn, app_id, user_id, None)


async def erase(conn: Connection, app_id: str, user_id: str) -> int:
    """Forget a user's deliveries, and notifications that were for nobody else; how many waited. The dedupe windows
    go with the devices."""
    waited, notification_ids = await store.erase_deliveries(conn, app_id, user_id)
    await store.erase_undelivered(conn, app_id, notification_ids)
    return waited
