"""SQL of the `user_tiers` table: tiers that were granted to users."""

from __future__ import annotations

from syncbeat_server.storage.postgres.database import Connection


async def find_tier(conn: Connection, app_id: str, user_id: str) -> str:
    """Return the tier that was granted to a user; empty if none was."""
    tier: str | None = await conn.fetchval(
        "SELECT tier FROM user_tiers WHERE app_id = $1 AND user_id = $2", app_id, user_id
    )
    return tier or ""


async def set_tier(conn: Connection, app_id: str, user_id: str, tier: str) -> None:
    """Grant a tier to a user, in place of any other."""
    await conn.execute(
        """INSERT INTO user_tiers AS t (app_id, user_id, tier, updated_at) VALUES ($1, $2, $3, syncbeat_now())
           ON CONFLICT (app_id, user_id) DO UPDATE SET tier = excluded.tier, updated_at = excluded.updated_at
           WHERE t.tier <> excluded.tier""",
        app_id,
        user_id,
        tier,
    )


async def clear_tier(conn: Connection, app_id: str, user_id: str) -> None:
    """Take back the tier that was granted to a user."""
    await conn.execute("DELETE FROM user_tiers WHERE app_id = $1 AND user_id = $2", app_id, user_id)
