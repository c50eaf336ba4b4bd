"""Erases what a user was granted and has used."""

from __future__ import annotations

from syncbeat_server.ratelimit.store import quota_usage, user_tiers
from syncbeat_server.storage.postgres.database import Connection


async def is_unused(conn: Connection, app_id: str, user_id: str) -> bool:
    """Tell if a user was granted no tier; quota counts are no trace of a person, since each first call makes one."""
    return not await user_tiers.find_tier(conn, app_id, user_id)


async def erase_user(conn: Connection, app_id: str, user_id: str) -> None:
    """Delete a user's tier and quota counts; last in its transaction, once the user is marked as deleted."""
    await user_tiers.clear_tier(conn, app_id, user_id)
    await quota_usage.erase_usage(conn, app_id, user_id)
