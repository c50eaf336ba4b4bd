"""Keeps what one side of a comparison has, in the order of its names, in a file that nobody else sees.

An export may have more entries than memory holds, in another order than the database. So their digests go into a
temporary database of SQLite, which reads them in order, with a cache of bounded size.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path as FilePath
from typing import NamedTuple

from syncbeat_server.errors import ConfigurationError
from syncbeat_server.transfer.model import Path, spelled
from syncbeat_server.transfer.temporary_database import temporary_database

_SCHEMA = """
    CREATE TABLE spooled_entries (
        kind TEXT, scope TEXT, name TEXT, digest BLOB, PRIMARY KEY (kind, scope, name)) WITHOUT ROWID;
    CREATE TABLE spooled_misfits (path TEXT PRIMARY KEY) WITHOUT ROWID;
    CREATE TABLE wanted_keys (scope TEXT, name TEXT, is_there INTEGER, PRIMARY KEY (scope, name)) WITHOUT ROWID;
"""
_ADD = "INSERT INTO spooled_entries VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET digest = excluded.digest"


class EntryKind(StrEnum):
    """Names what entries are of. Of `DEVICE` and `PREFERENCES` the scope is the user."""

    VALUE = "value"
    MEMBER = "member"
    DEVICE = "device"
    PREFERENCES = "preferences"


class SpooledEntry(NamedTuple):
    """One entry: its kind, its scope or user, its name in that, and the digest of its content."""

    kind: str
    scope: str
    name: str
    digest: bytes


class Spool:
    """Temporary database of entries, and of the keys that are to be mended."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def add(self, entries: Iterable[SpooledEntry]) -> None:
        """Add entries; of two with one name the last one counts. Raises ConfigurationError: the disk is full."""
        self._insert(_ADD, entries)

    def entries(self, kind: EntryKind) -> Iterator[SpooledEntry]:
        """Yield the entries of a kind in the order of scopes and names, by code points."""
        found = self._database.execute("SELECT * FROM spooled_entries WHERE kind = ? ORDER BY scope, name", (kind,))
        return map(SpooledEntry._make, found)

    def add_misfit(self, path: Path) -> None:
        """Note a path whose value fits no target, so that its absence here says nothing. Raises as `add`."""
        self._insert("INSERT INTO spooled_misfits VALUES (?) ON CONFLICT DO NOTHING", [(spelled(path),)])

    def is_misfit(self, path: Path) -> bool:
        """Return True if the value at a path, or at one above it, fits no target."""
        above = [(spelled(path[:depth]),) for depth in range(1, len(path) + 1)]
        return any(
            self._database.execute("SELECT 1 FROM spooled_misfits WHERE path = ?", one).fetchone() for one in above
        )

    def want(self, keys: Iterable[tuple[str, str, bool]]) -> None:
        """Note keys to be mended: scope, key, and True if the other side has a value. Raises as `add`."""
        self._insert("INSERT INTO wanted_keys VALUES (?, ?, ?) ON CONFLICT DO NOTHING", keys)

    def is_wanted(self, scope: str, key: str) -> bool:
        """Return True if a key is to be mended."""
        found = self._database.execute("SELECT 1 FROM wanted_keys WHERE scope = ? AND name = ?", (scope, key))
        return found.fetchone() is not None

    def count_wanted(self) -> tuple[int, int]:
        """Return how many keys are to be written, and how many to be deleted."""
        query = "SELECT count(*) FILTER (WHERE is_there), count(*) FILTER (WHERE NOT is_there) FROM wanted_keys"
        to_write, to_delete = self._database.execute(query).fetchone()
        return to_write, to_delete

    def absent(self) -> Iterator[tuple[str, str]]:
        """Yield the scope and key of those to be mended of which the other side has no value."""
        yield from self._database.execute("SELECT scope, name FROM wanted_keys WHERE NOT is_there ORDER BY scope, name")

    def _insert(self, statement: str, rows: Iterable[tuple[object, ...]]) -> None:
        try:
            self._database.executemany(statement, rows)
        except sqlite3.OperationalError as fault:
            raise ConfigurationError(f"the temporary directory cannot take the digests: {fault}") from fault


@contextmanager
def open_spool(directory: FilePath | None) -> Iterator[Spool]:
    """Open an empty spool. Raises as `temporary_database`."""
    with temporary_database(directory, _SCHEMA) as database:
        yield Spool(database)
