"""SQL that tells whether the database is still the one that it was, or was put back to an earlier state (ADR 72)."""

from __future__ import annotations

from syncbeat_server.storage.postgres.database import Connection


async def lineage(conn: Connection) -> str:
    """A text that is another one after each restore, whether or not anybody said that there was one.

    A restore starts a server, makes the database or its tables anew, or empties them. So does a restart or a rewritten
    table, after which nothing is wrong: who sees another text looks for itself.
    """
    found: str = await conn.fetchval(
        """SELECT concat_ws(' ', extract(epoch FROM pg_postmaster_start_time()),
                            (SELECT oid FROM pg_database WHERE datname = current_database()),
                            'scopes'::regclass::oid, pg_relation_filenode('scopes'),
                            (SELECT feed_generation FROM deployment))"""
    )
    return found


async def begin_feed_generation(conn: Connection) -> int:
    """Begin the next life of the feeds; the answer is its number, in milliseconds since 1970.

    By the time and not by counting on: what was counted after the backup was lost with the restore, and would come
    again.
    """
    return int(
        await conn.fetchval(
            """INSERT INTO deployment AS d (feed_generation)
               VALUES ((extract(epoch FROM clock_timestamp()) * 1000)::bigint)
               ON CONFLICT (is_only_row) DO UPDATE
               SET feed_generation = greatest(d.feed_generation + 1, excluded.feed_generation)
               RETURNING feed_generation"""
        )
    )
