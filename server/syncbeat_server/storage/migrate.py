"""Runs migrations: numbered SQL files, each applied once, in order, in a transaction of its own.

The runner uses a direct connection (or a session pooler's), under an advisory lock, as the login that owns the
database. Servers only check: `require_current_schema` refuses a database that is older, or newer and incompatible.

Migrations leave a schema that earlier versions work on, so that a server can restart, or be rolled back, after the
database was migrated. A migration that does not says so by its name: `NNNN_breaking_name.sql`.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import asyncpg

from syncbeat_server.errors import ConfigurationError, MigrationFailed, MigrationNeeded
from syncbeat_server.storage.postgres.commented import connect_apart
from syncbeat_server.storage.postgres.database import Connection
from syncbeat_server.storage.postgres.driver_errors import StatementRejected, translated_errors
from syncbeat_server.storage.postgres.hosts import Hosts
from syncbeat_server.storage.postgres.roles import grant_roles, require_roles

_log = logging.getLogger(__name__)

COMMAND = "syncbeat-server migrate"
DIRECTORY = Path(__file__).with_name("migrations")

_FILE_NAME = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")
_BREAKING = re.compile(r"\d{4}_breaking_")
_LOCK_KEY = int.from_bytes(b"syncbeat", "big")
_CONNECT_S = 10.0
_RUNNERS_WAIT_S = 120
_TABLE_LOCK_S = 30
_FILE_S = 900
_POOLER_ROUNDS = 4
_Raw: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

_INSUFFICIENT_PRIVILEGE = "42501"


@dataclass(frozen=True)
class Migration:
    """One migration file: its number, its name, the SHA-256 of its bytes and its SQL."""

    version: int
    name: str
    checksum: str
    sql: str


@dataclass(frozen=True)
class Applied:
    """Row of `schema_migrations`."""

    version: int
    name: str
    checksum: str


@dataclass(frozen=True)
class SchemaState:
    """Difference between the migrations of a database and the files of this code."""

    applied: tuple[str, ...]
    missing: tuple[str, ...]
    unknown: tuple[str, ...]
    changed: tuple[str, ...]

    @property
    def current(self) -> bool:
        """Return True if the database has exactly the migrations of this code."""
        return not (self.missing or self.unknown or self.changed)

    @property
    def breaking(self) -> str:
        """Return the last unknown migration that this code cannot work with; empty if there is none."""
        return next((name for name in reversed(self.unknown) if _BREAKING.match(name)), "")


def read_migrations(directory: Path | None = None) -> list[Migration]:
    """Return the migration files in order.

    Raises:
        MigrationFailed: a name is not NNNN_name.sql, or the numbers are not 1, 2, 3 and so on, each once.
    """
    found = []
    for path in sorted((directory or DIRECTORY).iterdir()):
        if path.suffix != ".sql":
            continue
        match = _FILE_NAME.fullmatch(path.name)
        if match is None:
            raise MigrationFailed(f"{path.name}: want NNNN_name.sql, in lower case")
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        found.append(Migration(int(match[1]), path.name, digest, content.decode("utf-8")))
    for expected, migration in enumerate(found, start=1):
        if migration.version != expected:
            raise MigrationFailed(f"{migration.name}: want {expected:04}; there is a gap, or a number twice")
    return found


def compare(applied: Sequence[Applied], migrations: Sequence[Migration]) -> SchemaState:
    """Compare the migrations applied to a database with the files."""
    files = {migration.version: migration for migration in migrations}
    rows = {row.version: row for row in applied}
    return SchemaState(
        applied=tuple(row.name for row in applied),
        missing=tuple(m.name for m in migrations if m.version not in rows),
        unknown=tuple(row.name for row in applied if row.version not in files),
        changed=tuple(
            files[row.version].name
            for row in applied
            if row.version in files and files[row.version].checksum != row.checksum
        ),
    )


async def schema_state(
    conn: Connection, directory: Path | None = None, migrations: Sequence[Migration] | None = None
) -> SchemaState:
    """Compare the database of `conn` with the files; one without our tables lacks them all.

    `migrations` are the files, if they are read already.

    Raises:
        DependencyDown: the database does not answer.
        StatementRejected: the login may not read the table of migrations (42501).
    """
    migrations = read_migrations(directory) if migrations is None else migrations
    if await conn.fetchval("SELECT to_regclass('schema_migrations')") is None:
        return compare((), migrations)
    rows = await conn.fetch("SELECT version, name, checksum FROM schema_migrations ORDER BY version")
    return compare([Applied(row["version"], row["name"], row["checksum"]) for row in rows], migrations)


async def require_current_schema(
    conn: Connection, directory: Path | None = None, migrations: Sequence[Migration] | None = None
) -> None:
    """Check that this code works with the database; servers do so before they serve, and while they do.

    Raises:
        MigrationNeeded: it is older, newer by a breaking file, or was migrated by other files; the message has the fix.
        DependencyDown: the database does not answer.
    """
    try:
        state = await schema_state(conn, directory, migrations)
    except StatementRejected as error:
        if error.sqlstate != _INSUFFICIENT_PRIVILEGE:
            raise
        raise MigrationNeeded(f"the login may not read the database's tables: run '{COMMAND}'") from error
    if state.breaking:
        raise MigrationNeeded(f"the database is newer than this server (it has {state.breaking}): run a newer server")
    if state.changed:
        raise MigrationNeeded(f"{state.changed[0]} is not the file the database was migrated with")
    if state.missing:
        lacks = state.missing[0]
        raise MigrationNeeded(f"the database is older than this server (it lacks {lacks}): run '{COMMAND}'")


async def require_restricted_login(conn: Connection) -> None:
    """Check that row-level security binds the login of `conn`.

    Raises:
        ConfigurationError: it is a superuser, has BYPASSRLS or owns the tables (itself or through a role), or its
            row_security is off, with which PostgreSQL refuses every statement that a policy would bind.
        DependencyDown: the database does not answer.
    """
    row = await conn.fetchrow(
        """SELECT current_user::text AS login, quote_ident(current_user) AS quoted,
                  quote_ident(current_database()) AS database,
                  (SELECT source FROM pg_settings WHERE name = 'row_security' AND setting = 'off') AS off_by,
                  bool_or(r.rolsuper OR r.rolbypassrls) AS bypasses,
                  EXISTS (SELECT FROM pg_class c
                          WHERE c.relkind IN ('r', 'p') AND c.relnamespace = current_schema()::regnamespace
                            AND pg_has_role(current_user, c.relowner, 'MEMBER')) AS owns
           FROM pg_roles r WHERE pg_has_role(current_user, r.oid, 'MEMBER')"""
    )
    if row is not None and (row["bypasses"] or row["owns"]):
        raise ConfigurationError(
            f"SYNCBEAT_DATABASE_URL: the login {row['login']} is above row-level security (superuser, BYPASSRLS "
            "or owner of the tables): give the service a login of its own, as deploy/postgres/10-logins.sh does"
        )
    if row is not None and row["off_by"] is not None:
        # A setting of this login in this database overrides all others but those of the address itself.
        fix = f"run ALTER ROLE {row['quoted']} IN DATABASE {row['database']} SET row_security = on"
        raise ConfigurationError(
            f"SYNCBEAT_DATABASE_URL: row_security is off for the login {row['login']}, so that PostgreSQL refuses its "
            f"queries: {'take row_security out of the address' if row['off_by'] == 'client' else fix}"
        )


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
