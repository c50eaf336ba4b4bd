"""Shutting users out and erasing their sessions, in the caller's transaction; sessions that ended long ago."""

from __future__ import annotations

from syncbeat_server.auth.store import sessions, users
from syncbeat_server.storage.postgres.database import Connection
from syncbeat_server.storage.retention import OldRows

OLD_ROWS = (OldRows("sessions", sessions.forget_expired),)


async def disable(conn: Connection, app_id: str, user_id: str) -> None:
    """Shut a user out; its sessions wait for it."""
    await users.disable_user(conn, app_id, user_id)


async def enable(conn: Connection, app_id: str, user_id: str) -> None:
    """Let a user in, whoever it is."""
    await users.let_in(conn, app_id, user_id)


async def erase(conn: Connection, app_id: str, user_id: str) -> int:
    """Forget a user's sessions, and shut it out with every token that was issued so far; how many sessions."""
    await users.revoke_user(conn, app_id, user_id, "")
    await users.mark_deleted(conn, app_id, user_id)
    return await sessions.erase_sessions(conn, app_id, user_id)
