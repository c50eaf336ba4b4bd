"""Disables, enables and deletes users across all features, each in one transaction.

An id that is only the subject of a user of another id is refused with IdentityConflict, which names the user.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from syncbeat_server.audit.model import AuditAction, user_subject
from syncbeat_server.audit.record import record
from syncbeat_server.auth.accounts import user_access as auth
from syncbeat_server.directory import user_erasure as directory
from syncbeat_server.push import accept as push
from syncbeat_server.ratelimit import erasure as ratelimit
from syncbeat_server.storage.idempotency import forget_caller
from syncbeat_server.storage.postgres.database import Connection, Database


@dataclass(frozen=True, slots=True)
class Erased:
    """Counts the rows of a user that were deleted, and the deliveries that were cancelled."""

    devices: int
    memberships: int
    sessions: int
    cancelled: int


async def disable_user(conn: Connection, app_id: str, user_id: str) -> None:
    """Disable a user, and cancel the deliveries to its devices, in the caller's transaction."""
    await auth.disable(conn, app_id, user_id)
    await push.cancel_user(conn, app_id, user_id)
    await record(conn, app_id, AuditAction.USER_DISABLED, user_subject(user_id))


async def enable_user(conn: Connection, app_id: str, user_id: str) -> None:
    """Enable a user in the caller's transaction."""
    await auth.enable(conn, app_id, user_id)
    await record(conn, app_id, AuditAction.USER_ENABLED, user_subject(user_id))


async def delete_user(conn: Connection, app_id: str, user_id: str) -> Erased:
    """Delete a user in the caller's transaction, which has locked nothing that comes after users (ADR 66)."""
    # The user's row first: sessions that are created meanwhile wait for it.
    sessions = await auth.erase(conn, app_id, user_id)
    await directory.begin_erasing(conn, app_id, user_id)
    cancelled = await push.erase_user(conn, app_id, user_id)
    await forget_caller(conn, app_id, f"user:{user_id}")
    devices, memberships = await directory.erase_user(conn, app_id, user_id)
    await ratelimit.erase_user(conn, app_id, user_id)
    await record(conn, app_id, AuditAction.USER_DELETED, user_subject(user_id), devices=devices, sessions=sessions)
    return Erased(devices, memberships, sessions, cancelled)


class UserLifecycle:
    """Disables, enables and deletes users."""

    def __init__(self, database: Database, caller_changed: Callable[[str, str], None]) -> None:
        """`caller_changed(app, user)` is called after each commit, so that caches and streams check the user again."""
        self._database = database
        self._caller_changed = caller_changed

    async def disable(self, app_id: str, user_id: str) -> None:
        """Refuse all calls of a user from now on, and cancel the deliveries to its devices."""
        async with self._database.transaction() as conn:
            await disable_user(conn, app_id, user_id)
        self._caller_changed(app_id, user_id)

    async def enable(self, app_id: str, user_id: str) -> None:
        """Accept a disabled or unknown user's calls from now on."""
        async with self._database.transaction() as conn:
            await enable_user(conn, app_id, user_id)
        self._caller_changed(app_id, user_id)

    async def delete(self, app_id: str, user_id: str) -> Erased:
        """Delete a user. Its published changes stay; the record of the deletion refuses its tokens."""
        async with self._database.transaction() as conn:
            erased = await delete_user(conn, app_id, user_id)
        self._caller_changed(app_id, user_id)
        return erased
