"""Disables, enables and erases a user's access in the caller's transaction."""

from __future__ import annotations

from collections.abc import Sequence

from syncbeat_server.auth.store import identities, sessions, users
from syncbeat_server.errors import IdentityConflict
from syncbeat_server.storage.postgres.database import Connection


async def require_user_id(conn: Connection, app_id: str, user_id: str) -> None:
    """Refuse an id that is only another name of a user: what is done to it would not reach that user.

    Call it after the row of that id was locked, for which a join of a subject that has one waits.

    Raises:
        IdentityConflict: the id is a subject that is linked to a user. The message names the user.
    """
    aliased = await identities.find_aliased(conn, app_id, user_id)
    if aliased is not None:
        raise IdentityConflict(f"this id is a subject of the user {aliased!r}, and no user's own: name that user")


async def disable(conn: Connection, app_id: str, user_id: str) -> None:
    """Disable a user. Its sessions are kept and work again once it is enabled. Raises as `require_user_id`."""
    await users.disable_user(conn, app_id, user_id)
    await require_user_id(conn, app_id, user_id)


async def enable(conn: Connection, app_id: str, user_id: str) -> None:
    """Enable a user, inserting it if it is unknown. Raises as `require_user_id`."""
    await users.enable_user(conn, app_id, user_id)
    await require_user_id(conn, app_id, user_id)


async def ensure(conn: Connection, app_id: str, user_ids: Sequence[str]) -> None:
    """Insert users who are unknown; those who are known, disabled or deleted stay as they are."""
    await users.insert_users(conn, [(app_id, user_id) for user_id in sorted(set(user_ids))])


async def lock(conn: Connection, app_id: str, user_ids: Sequence[str]) -> None:
    """Lock users before whatever comes after them in the order of locks (ADR 66)."""
    await users.lock_users(conn, app_id, user_ids)


async def lock_deleted(conn: Connection, app_id: str, user_ids: Sequence[str]) -> set[str]:
    """Lock users as `lock` does, so that none is deleted meanwhile, and return those who are deleted."""
    known = await users.lock_known(conn, app_id, user_ids)
    return {name for name, user in known.items() if user.deleted}


async def erase(conn: Connection, app_id: str, user_id: str) -> int:
    """Delete a user's sessions and revoke every token issued so far. Returns the number of sessions.

    Identities stay without their e-mail addresses, so that no other issuer's token brings the user back. Raises as
    `require_user_id`.
    """
    await users.revoke_user(conn, app_id, user_id, "")
    await require_user_id(conn, app_id, user_id)
    await users.mark_deleted(conn, app_id, user_id)
    await identities.forget_emails(conn, app_id, user_id)
    return await sessions.delete_sessions(conn, app_id, user_id)
