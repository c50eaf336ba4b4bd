"""SQL that asks if the directory keeps anything of a user."""

from __future__ import annotations

from syncbeat_server.storage.postgres.database import Connection


async def has_rows(conn: Connection, app_id: str, user_id: str) -> bool:
    """Tell if a user has devices, memberships or preferences."""
    return bool(
        await conn.fetchval(
            """SELECT EXISTS (SELECT FROM devices WHERE app_id = $1 AND user_id = $2)
                   OR EXISTS (SELECT FROM scope_members WHERE app_id = $1 AND user_id = $2)
                   OR EXISTS (SELECT FROM preferences WHERE app_id = $1 AND user_id = $2)""",
            app_id,
            user_id,
        )
    )
