"""SQL of the connections that PostgreSQL shows of the service's login."""

from __future__ import annotations

from syncbeat_server.storage.postgres.database import Connection


async def count_by_state(conn: Connection) -> dict[str, int]:
    """Return how many connections this login has to this database, by state, of all processes together.

    PostgreSQL shows a login the states of its own sessions; those of others would take a grant, and are not asked for.
    """
    rows = await conn.fetch(
        """SELECT coalesce(state, 'starting') AS state, count(*)::int AS n FROM pg_stat_activity
           WHERE datname = current_database() AND usename = current_user AND backend_type = 'client backend'
           GROUP BY 1 ORDER BY 1"""
    )
    return {row["state"]: row["n"] for row in rows}
