"""SQL that detects a restore of the database to an earlier state (ADR 72)."""

from __future__ import annotations

from syncbeat_server.storage.postgres.database import Connection


async def lineage(conn: Connection) -> str:
    """Return a text that changes with each restore, whether or not the operator announced it.

    A restore starts a server, creates the database or its tables, or empties them. A restart or a rewritten table
    changes the text too, without harm: whoever sees it change reads the database again.
    """
    found: str = await conn.fetchval(
        """SELECT concat_ws(' ', extract(epoch FROM pg_postmaster_start_time()),
                            (SELECT oid FROM pg_database WHERE datname = current_database()),
                            'scopes'::regclass::oid, pg_relation_filenode('scopes'),
                            (SELECT feed_generation FROM deployment))"""
    )
    return found


async def begin_feed_generation(conn: Connection) -> int:
    """Begin the next generation of all feeds and return its number, in milliseconds since 1970.

    Taken from the clock and not counted on: numbers used after the backup were lost with the restore, and counting
    would use them again.
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
