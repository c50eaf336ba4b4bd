"""Runs migrations: numbered SQL files, each applied once, in order, in a transaction of its own.

The runner uses a direct connection (or a session pooler's), under an advisory lock, as the login that owns the
database. Servers only check (`schema_check`).

Migrations leave a schema that earlier versions work on, so that a server can restart, or be rolled back, after the
database was migrated. A migration that does not says so by its name: `NNNN_breaking_name.sql`.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeAlias

import asyncpg

from syncbeat_server.errors import MigrationFailed
from syncbeat_server.storage.postgres.driver_errors import translated_errors
from syncbeat_server.storage.postgres.hosts import Hosts
from syncbeat_server.storage.postgres.roles import grant_roles, require_roles
from syncbeat_server.storage.postgres.statement_comments import connect_apart
from syncbeat_server.storage.schema_check import COMMAND, Applied, Migration, compare, read_migrations

_log = logging.getLogger(__name__)

_LOCK_KEY = int.from_bytes(b"syncbeat", "big")
_CONNECT_S = 10.0
_RUNNERS_WAIT_S = 120
_TABLE_LOCK_S = 30
_FILE_S = 900
_POOLER_ROUNDS = 4
_Raw: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


async def migrate(session_url: str, *, app_login: str, directory: Path | None = None) -> list[str]:
    """Apply the migrations that the database lacks, grant `app_login` its use, and return the names of the files.

    `session_url` is a direct connection as the login that owns the database. Several runners may run at once.

    Raises:
        MigrationFailed: a file failed or was changed, the database is newer or refuses the login, the connection
            goes through a transaction pooler, or `app_login` does not exist or cannot be granted its roles.
        DependencyDown: the database does not answer.
    """
    migrations = read_migrations(directory)
    async with _connection(session_url) as conn:
        with translated_errors():
            await _refuse_pooler(conn, session_url)
            await _take_lock(conn)
            pending = await _pending(conn, migrations)
            await require_roles(conn, app_login)
            for migration in pending:
                await _apply(conn, migration)
            await grant_roles(conn, app_login)
    return [migration.name for migration in pending]


@asynccontextmanager
async def _connection(url: str) -> AsyncIterator[_Raw]:
    with translated_errors():
        try:
            conn = await connect_apart(Hosts(url), url, "syncbeat-migrate", _CONNECT_S)
        except (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidCatalogNameError) as error:
            raise MigrationFailed(
                f"the database refuses this login, or does not exist (SQLSTATE {error.sqlstate}): "
                "check the address, the user and the password"
            ) from error
    try:
        yield conn
    finally:
        # Closing ends the session, and with it the advisory lock.
        try:
            await conn.close(timeout=_CONNECT_S)
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            conn.terminate()


async def _refuse_pooler(conn: _Raw, url: str) -> None:
    # Behind a transaction pooler our connection has no server process of its own: a second connection gets the same
    # one, or our next statement runs on another. The next client of that process would hold our advisory lock.
    ours = await conn.fetchval("SELECT pg_backend_pid()")
    async with _connection(url) as second:
        for _ in range(_POOLER_ROUNDS):
            async with second.transaction():
                theirs = await second.fetchval("SELECT pg_backend_pid()")
                if theirs == ours or await conn.fetchval("SELECT pg_backend_pid()") != ours:
                    raise MigrationFailed(
                        "this connection goes through a transaction pooler, where locks do not hold: "
                        "set SYNCBEAT_DATABASE_SESSION_URL to a direct connection"
                    )


async def _take_lock(conn: _Raw) -> None:
    await conn.execute(f"SET lock_timeout = '{_RUNNERS_WAIT_S}s'")
    try:
        await conn.execute(f"SELECT pg_advisory_lock({_LOCK_KEY})")
    except asyncpg.LockNotAvailableError as error:
        raise MigrationFailed(f"another migration has been running for {_RUNNERS_WAIT_S} s") from error
    # With row_security off, as some set it for owners who run pg_dump, a file that reads our tables would fail.
    await conn.execute(
        f"SET lock_timeout = '{_TABLE_LOCK_S}s'; SET statement_timeout = '{_FILE_S}s'; SET row_security = on"
    )


async def _pending(conn: _Raw, migrations: Sequence[Migration]) -> list[Migration]:
    try:
        await conn.execute(
            """CREATE TABLE IF NOT EXISTS schema_migrations (
                   version    integer PRIMARY KEY,
                   name       text NOT NULL,
                   checksum   text NOT NULL,
                   applied_at timestamptz NOT NULL DEFAULT now())"""
        )
        rows = await conn.fetch("SELECT version, name, checksum FROM schema_migrations ORDER BY version")
    except asyncpg.InsufficientPrivilegeError as error:
        raise MigrationFailed("this login may not create tables: migrate as the database's owner") from error
    state = compare([Applied(row["version"], row["name"], row["checksum"]) for row in rows], migrations)
    if state.changed:
        raise MigrationFailed(
            f"{state.changed[0]}: was changed after it was applied; restore it and write a new file instead"
        )
    if state.breaking:
        raise MigrationFailed(f"{state.breaking}: is in the database and not here; run a newer {COMMAND}")
    return [migration for migration in migrations if migration.name in state.missing]


def _log_warning(_conn: object, message: asyncpg.PostgresLogMessage) -> None:
    # A migration warns of rows that it had to change.
    if getattr(message, "severity", "") == "WARNING":
        _log.warning("%s", getattr(message, "message", ""))


async def _apply(conn: _Raw, migration: Migration) -> None:
    conn.add_log_listener(_log_warning)
    try:
        async with conn.transaction():
            await conn.execute(migration.sql)
            if not conn.is_in_transaction():
                raise MigrationFailed(f"{migration.name}: ends its transaction, which is the runner's to end")
            await conn.execute(
                "INSERT INTO schema_migrations (version, name, checksum) VALUES ($1, $2, $3)",
                migration.version,
                migration.name,
                migration.checksum,
            )
    except asyncpg.PostgresError as error:
        place = _error_line(migration.sql, getattr(error, "position", None))
        what = f"{migration.name}: {place}SQLSTATE {error.sqlstate}; nothing of it was kept"
        raise MigrationFailed(what) from error
    finally:
        conn.remove_log_listener(_log_warning)


def _error_line(sql: str, position: str | None) -> str:
    # PostgreSQL counts characters from 1.
    return f"line {sql.count(chr(10), 0, int(position) - 1) + 1}: " if position else ""
