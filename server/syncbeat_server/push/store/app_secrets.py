"""SQL of `app_secrets`: the key of each app that signs ack tokens and tells databases apart in Redis."""

from __future__ import annotations

from syncbeat_server.storage.postgres.database import Connection


async def read_or_create(conn: Connection, app_id: str) -> bytes:
    """Return the app's secret in this database, creating it on first use."""
    found = await conn.fetchval("SELECT secret FROM app_secrets WHERE app_id = $1", app_id)
    if found is None:
        await conn.execute("INSERT INTO app_secrets (app_id) VALUES ($1) ON CONFLICT DO NOTHING", app_id)
        found = await conn.fetchval("SELECT secret FROM app_secrets WHERE app_id = $1", app_id)
    return bytes(found)
