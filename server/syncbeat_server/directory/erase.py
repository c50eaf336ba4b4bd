"""What becomes of a user's devices and memberships, in the caller's transaction, when it is erased."""

from __future__ import annotations

from typing import NamedTuple

from syncbeat_server.directory import device_locks, store
from syncbeat_server.storage.postgres.database import Connection


class Erased(NamedTuple):
    """How much there was."""

    devices: int
    memberships: int


async def begin_erasing(conn: Connection, app_id: str, user_id: str) -> None:
    """Lock a user's devices, before what waits for them."""
    await store.lock_erasing(conn, app_id, user_id)
    await device_locks.lock_devices(conn, app_id, user_id, None)


async def erase(conn: Connection, app_id: str, user_id: str) -> Erased:
    """Forget a user's devices, memberships, preferences, and what became of its registration tokens."""
    memberships = await store.erase_memberships(conn, app_id, user_id)
    await store.erase_traces(conn, app_id, user_id)
    # Last, so that nothing else is waited for while the keys are locked.
    await device_locks.lock_keys(conn, app_id, user_id, None)
    devices = await device_locks.delete_devices(conn, app_id, user_id, None)
    return Erased(devices, memberships)
