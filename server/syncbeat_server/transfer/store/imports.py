"""Reads and writes how far imports have come."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from syncbeat_server.storage.postgres.database import Connection


@dataclass(frozen=True, slots=True)
class ImportKey:
    """Identifies an import: by its app, and by the digest of all that decides what it writes."""

    app_id: str
    import_id: str


@dataclass(frozen=True, slots=True)
class ImportRow:
    """Holds how far an import has come: the places of the export that are done, and its report as JSON."""

    places: int
    report: str
    finished_at: datetime | None


async def look_up_by_index(conn: Connection) -> None:
    """Let the statements of this transaction find the keys of a batch by index, one by one.

    For a batch of thousands of keys the planner reads a table of a few hundred thousand rows as a whole, each time.
    """
    await conn.execute("SELECT set_config('enable_hashjoin', 'off', true), set_config('enable_mergejoin', 'off', true)")


async def begin_import(conn: Connection, key: ImportKey, export_name: str, report: str) -> ImportRow:
    """Return the row of an import, which is inserted with this report if there is none."""
    row = await conn.fetchrow(
        """INSERT INTO imports AS i (app_id, import_id, export_name, report, started_at, updated_at)
           VALUES ($1, $2, $3, $4::jsonb, syncbeat_now(), syncbeat_now())
           ON CONFLICT (app_id, import_id) DO UPDATE SET export_name = excluded.export_name
           RETURNING places, report::text AS report, finished_at""",
        key.app_id,
        key.import_id,
        export_name,
        report,
    )
    if row is None:
        raise AssertionError("an upsert returns its row")
    return ImportRow(row["places"], row["report"], row["finished_at"])


async def find_import(conn: Connection, key: ImportKey) -> ImportRow | None:
    """Return the row of an import; None if it was never begun."""
    row = await conn.fetchrow(
        "SELECT places, report::text AS report, finished_at FROM imports WHERE app_id = $1 AND import_id = $2",
        key.app_id,
        key.import_id,
    )
    return None if row is None else ImportRow(row["places"], row["report"], row["finished_at"])


async def advance_import(conn: Connection, key: ImportKey, before: int, after: int, report: str) -> bool:
    """Move an import on from `before` places to `after`; return False if it is not there: another process runs it."""
    row = await conn.fetchrow(
        """UPDATE imports SET places = $4, report = $5::jsonb, updated_at = syncbeat_now(), finished_at = NULL
           WHERE app_id = $1 AND import_id = $2 AND places = $3 RETURNING 1 AS moved""",
        key.app_id,
        key.import_id,
        before,
        after,
        report,
    )
    return row is not None


async def finish_import(conn: Connection, key: ImportKey, places: int, report: str) -> bool:
    """Mark an import as finished; return False if it is not at these places."""
    row = await conn.fetchrow(
        """UPDATE imports SET report = $4::jsonb, updated_at = syncbeat_now(), finished_at = syncbeat_now()
           WHERE app_id = $1 AND import_id = $2 AND places = $3 RETURNING 1 AS finished""",
        key.app_id,
        key.import_id,
        places,
        report,
    )
    return row is not None
