"""Compares the migrations of a database with those of this code; servers refuse one that is older, or too new for them.

A newer database is served unless one of its migrations is breaking, which its name says: `NNNN_breaking_name.sql`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from syncbeat_server.errors import MigrationFailed, MigrationNeeded
from syncbeat_server.storage.postgres.database import Connection
from syncbeat_server.storage.postgres.driver_errors import INSUFFICIENT_PRIVILEGE, StatementRejected

COMMAND = "syncbeat-server migrate"
DIRECTORY = Path(__file__).with_name("migrations")

_FILE_NAME = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")
_BREAKING = re.compile(r"\d{4}_breaking_")


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
        if error.sqlstate != INSUFFICIENT_PRIVILEGE:
            raise
        raise MigrationNeeded(f"the login may not read the database's tables: run '{COMMAND}'") from error
    if state.breaking:
        raise MigrationNeeded(f"the database is newer than this server (it has {state.breaking}): run a newer server")
    if state.changed:
        raise MigrationNeeded(f"{state.changed[0]} is not the file the database was migrated with")
    if state.missing:
        lacks = state.missing[0]
        raise MigrationNeeded(f"the database is older than this server (it lacks {lacks}): run '{COMMAND}'")
