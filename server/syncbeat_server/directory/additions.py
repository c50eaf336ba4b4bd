"""Adds members, devices and preferences in the caller's transaction where there are none; what is there stays.

They carry no time by which a copy from elsewhere could be told from what a live caller has set since.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from syncbeat_server.directory.devices.token_moves import digest_of, find_move
from syncbeat_server.directory.model import Member, Preferences, Registration
from syncbeat_server.directory.service import LockScope, join_scope
from syncbeat_server.directory.store import devices, members, preferences
from syncbeat_server.directory.user_limits import registration_refusal
from syncbeat_server.storage.postgres.database import Connection


async def add_absent_members(conn: Connection, lock_scope: LockScope, app_id: str, wanted: Sequence[Member]) -> int:
    """Add those who are no members yet, and return their number; others keep their role.

    Raises:
        RateLimited: a scope would have too many members, or a user too many scopes.
    """
    newest = {(member.scope, member.user_id): member for member in wanted}
    present = await members.present_members(conn, app_id, sorted(newest))
    joining: dict[str, list[Member]] = defaultdict(list)
    for key, member in sorted(newest.items()):
        if key not in present:
            joining[member.scope].append(member)
    for scope, added in joining.items():
        await join_scope(conn, lock_scope, app_id, scope, added)
    return sum(map(len, joining.values()))


async def add_absent_device(conn: Connection, device: Registration) -> bool:
    """Register a device unless it is registered, or another device has, or had, its token; return True if it was added.

    Raises:
        RateLimited: the user has too many devices.
    """
    await devices.lock_registering(conn, device.app_id, device.user_id, device.device_id)
    digest = digest_of(device.registration_token)
    if await devices.find_device(conn, device.app_id, device.user_id, device.device_id) is not None:
        return False
    if digest is not None and await find_move(conn, device, digest) is not None:
        return False
    refusal = await registration_refusal(conn, device, None)
    if refusal is not None:
        raise refusal
    await devices.upsert_device(conn, device, digest)
    return True


async def add_absent_preferences(conn: Connection, app_id: str, user_id: str, wanted: Preferences) -> bool:
    """Set the preferences of a user who has set none; return True if they were set."""
    return await preferences.add_preferences(conn, app_id, user_id, wanted)
