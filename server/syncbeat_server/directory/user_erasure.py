"""Erases what the directory keeps of a user, in the transaction of whoever deletes the user."""

from __future__ import annotations

from typing import NamedTuple

from syncbeat_server.directory.store import device_locks, devices, members, preferences, user_rows
from syncbeat_server.storage.postgres.database import Connection


class Erased(NamedTuple):
    """Counts the rows of a user that were deleted."""

    devices: int
    memberships: int


async def is_unused(conn: Connection, app_id: str, user_id: str) -> bool:
    """Tell if a user has no devices, memberships and preferences."""
    return not await user_rows.has_rows(conn, app_id, user_id)


async def begin_erasing(conn: Connection, app_id: str, user_id: str) -> None:
    """Lock a user's devices, before the rows that wait for them."""
    await devices.lock_erasing(conn, app_id, user_id)
    await device_locks.lock_devices(conn, app_id, user_id, None)


async def erase_user(conn: Connection, app_id: str, user_id: str) -> Erased:
    """Delete a user's devices, memberships and preferences, and the history of its registration tokens."""
    memberships = await members.erase_memberships(conn, app_id, user_id)
    await preferences.erase_traces(conn, app_id, user_id)
    # Last, so that nothing else is waited for while the keys are locked.
    await device_locks.lock_keys(conn, app_id, user_id, None)
    deleted = await device_locks.delete_devices(conn, app_id, user_id, None)
    return Erased(deleted, memberships)
