"""Reads and writes the notification preferences of users."""

from __future__ import annotations

from syncbeat_server.directory.model import Preferences, QuietHours
from syncbeat_server.storage.postgres.database import Connection, Row


async def set_preferences(conn: Connection, app_id: str, user_id: str, wanted: Preferences) -> Preferences:
    """Replace a user's preferences."""
    row = await conn.fetchrow(
        """INSERT INTO preferences (app_id, user_id, quiet_start, quiet_end, quiet_zone, max_per_day, muted_types,
                                    updated_at)
           VALUES ($1, $2, $3, $4, $5, $6, $7, syncbeat_now())
           ON CONFLICT (app_id, user_id) DO UPDATE SET
               quiet_start = excluded.quiet_start, quiet_end = excluded.quiet_end, quiet_zone = excluded.quiet_zone,
               max_per_day = excluded.max_per_day, muted_types = excluded.muted_types,
               updated_at = excluded.updated_at
           RETURNING *""",
        *_columns(app_id, user_id, wanted),
    )
    if row is None:
        raise AssertionError("an upsert returns its row")
    return _preferences(row)


async def add_preferences(conn: Connection, app_id: str, user_id: str, wanted: Preferences) -> bool:
    """Insert the preferences of a user who has set none; return False if there are some."""
    row = await conn.fetchrow(
        """INSERT INTO preferences (app_id, user_id, quiet_start, quiet_end, quiet_zone, max_per_day, muted_types,
                                    updated_at)
           VALUES ($1, $2, $3, $4, $5, $6, $7, syncbeat_now())
           ON CONFLICT (app_id, user_id) DO NOTHING RETURNING 1 AS added""",
        *_columns(app_id, user_id, wanted),
    )
    return row is not None


async def find_preferences(conn: Connection, app_id: str, user_id: str) -> Preferences | None:
    """Return a user's preferences; None if none were set."""
    row = await conn.fetchrow("SELECT * FROM preferences WHERE app_id = $1 AND user_id = $2", app_id, user_id)
    return None if row is None else _preferences(row)


def _columns(app_id: str, user_id: str, wanted: Preferences) -> tuple[object, ...]:
    quiet = wanted.quiet_hours
    return (
        app_id,
        user_id,
        None if quiet is None else quiet.start_minute,
        None if quiet is None else quiet.end_minute,
        "" if quiet is None else quiet.zone,
        wanted.max_per_day,
        list(wanted.muted_types),
    )


def _preferences(row: Row) -> Preferences:
    quiet = None
    if row["quiet_start"] is not None:
        quiet = QuietHours(row["quiet_start"], row["quiet_end"], row["quiet_zone"])
    return Preferences(quiet, row["max_per_day"], tuple(row["muted_types"]), row["updated_at"])


async def erase_traces(conn: Connection, app_id: str, user_id: str) -> None:
    """Delete a user's preferences, the moves of tokens from and to it, and the record of its dead tokens."""
    await conn.execute(
        """WITH preferences AS (DELETE FROM preferences WHERE app_id = $1 AND user_id = $2),
                removals AS (DELETE FROM token_removals WHERE app_id = $1 AND user_id = $2)
           DELETE FROM token_moves WHERE app_id = $1 AND $2 IN (from_user_id, to_user_id)""",
        app_id,
        user_id,
    )
