"""Inserts, lists and prunes entries; the service's login may neither change nor delete one."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from syncbeat_server.audit.model import AuditAction, AuditEntry, AuditFilter, EntryPlace, NewEntry, SeenApp
from syncbeat_server.storage.postgres.database import Connection
from syncbeat_server.storage.retention import BEGINNING, DeletedBatch

_COLUMNS = "app_id, entry_id::text, occurred_at, actor, address, action, subject, request_id, details"
_NEWEST = "ORDER BY occurred_at DESC, entry_id DESC"
# "sb" and "aud" in ASCII.
_CONFIGURATION_LOCK = (0x7362, 0x617564)


async def insert_entry(conn: Connection, entry: NewEntry) -> None:
    """Insert an entry. Its id and time are the database's: the login may not choose them."""
    await conn.execute(
        """INSERT INTO audit_entries (app_id, action, actor, address, subject, request_id, details)
           VALUES ($1, $2, $3, $4, $5, $6, $7)""",
        entry.app_id,
        entry.action,
        entry.actor,
        entry.address,
        entry.subject,
        entry.request_id,
        entry.details,
    )


async def list_entries(
    conn: Connection, apps: Sequence[str] | None, wanted: AuditFilter, after: EntryPlace | None, limit: int
) -> list[AuditEntry]:
    """Return up to `limit` entries of these apps (None: of all) after a place, newest first."""
    given: list[object] = []
    wheres: list[str] = []

    def add(condition: str, *values: object) -> None:
        places = [f"${len(given) + number}" for number in range(1, len(values) + 1)]
        given.extend(values)
        wheres.append(condition.format(*places))

    for column, text in (("actor", wanted.actor), ("action", wanted.action), ("subject", wanted.subject)):
        if text:
            add(f"{column} = {{}}", text)
    if wanted.since is not None:
        add("occurred_at >= {}", wanted.since)
    if wanted.until is not None:
        add("occurred_at < {}", wanted.until)
    if after is not None:
        add("(occurred_at, entry_id) < ({}, {}::uuid)", after.occurred_at, after.entry_id)
    given.append(limit)
    size, where = f"LIMIT ${len(given)}", " AND ".join(wheres) or "true"
    if apps is None:
        rows = await conn.fetch(f"SELECT {_COLUMNS} FROM audit_entries WHERE {where} {_NEWEST} {size}", *given)  # noqa: S608  # constants and places
        return [AuditEntry(*row.values()) for row in rows]
    # App by app, each from its index.
    rows = await conn.fetch(
        f"""SELECT {_COLUMNS} FROM unnest(${len(given) + 1}::text[]) AS of (app)
            CROSS JOIN LATERAL (
                SELECT * FROM audit_entries WHERE app_id = of.app AND {where} {_NEWEST} {size}) AS found
            {_NEWEST} {size}""",  # noqa: S608  # constants and places
        *given,
        list(apps),
    )
    return [AuditEntry(*row.values()) for row in rows]


async def lock_configuration(conn: Connection) -> None:
    """Let one process at a time compare the apps it is configured with to those that the log has."""
    await conn.execute("SELECT pg_advisory_xact_lock($1, $2)", *_CONFIGURATION_LOCK)


async def seen_apps(conn: Connection) -> dict[str, SeenApp]:
    """Return what the log says last of the configuration of each app."""
    rows = await conn.fetch(
        f"""SELECT DISTINCT ON (app_id) app_id, action, details::jsonb ->> 'settings' AS settings FROM audit_entries
            WHERE action IN ('{AuditAction.APP_ADDED}', '{AuditAction.APP_CHANGED}', '{AuditAction.APP_REMOVED}')
            ORDER BY app_id, occurred_at DESC, entry_id DESC"""  # noqa: S608  # constants
    )
    return {row["app_id"]: SeenApp(row["action"], row["settings"] or "") for row in rows}


async def delete_old(conn: Connection, keep_days: int, limit: int, since: datetime | None) -> DeletedBatch:
    """Delete up to `limit` entries that are older than `keep_days`, by the owner's function; none below 30 days.

    The newest about each app's configuration stays: `seen_apps` returns it.
    """
    (row,) = await conn.fetch(
        "SELECT gone, found, last FROM syncbeat_delete_old_audit($1, $2, $3)",
        timedelta(days=keep_days),
        limit,
        since or BEGINNING,
    )
    return DeletedBatch(row["gone"], row["found"] == limit and row["gone"] > 0, row["last"])
