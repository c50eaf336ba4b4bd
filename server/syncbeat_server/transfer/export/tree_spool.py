"""Keeps the entries of a tree in the order in which an export writes them, in a file that nobody else sees.

The database has scopes and keys in another order than the tree has paths. So the entries go into a temporary database
of SQLite, which is as large as the export, and are read from there in order, with a cache of bounded size.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path as FilePath

from syncbeat_server.errors import ConfigurationError
from syncbeat_server.transfer.model import Path
from syncbeat_server.transfer.rtdb.shapes import MAX_INDEX_DIGITS, is_index
from syncbeat_server.transfer.temporary_database import temporary_database

_TREE = """
    CREATE TABLE spooled_tree (place BLOB PRIMARY KEY, value TEXT) WITHOUT ROWID;
    CREATE TABLE spooled_times (place BLOB PRIMARY KEY, value TEXT, made_at REAL) WITHOUT ROWID;
"""
# Of a place: the keys with a zero octet between them, which none has, so that what is below a key is together. Keys of
# arrays go first, by their number: an octet for their digits goes before them.
_END, _INDEX, _NAME = b"\0", b"\1", b"\2"
_AFTER = b"\1"


class TreeSpool:
    """Temporary database of the values at the paths of a tree."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def add(self, entries: Iterable[tuple[Path, str]]) -> None:
        """Add values as JSON by their paths; of two at one path the last one counts. Raises ConfigurationError."""
        rows = ((place_of(path), value) for path, value in entries)
        with _told_faults():
            self._database.executemany(
                "INSERT INTO spooled_tree VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value", rows
            )

    def add_time(self, path: Path, value: str, made_at: datetime) -> None:
        """Add when a value was made; of several at one path the latest counts. Raises ConfigurationError."""
        with _told_faults():
            self._database.execute(
                """INSERT INTO spooled_times VALUES (?, ?, ?) ON CONFLICT DO UPDATE
                   SET value = excluded.value, made_at = excluded.made_at WHERE excluded.made_at > made_at""",
                (place_of(path), value, made_at.timestamp()),
            )

    def settle_times(self) -> None:
        """Put the times into the tree, where no value stands at their path. Raises ConfigurationError."""
        with _told_faults():
            self._database.execute("INSERT OR IGNORE INTO spooled_tree SELECT place, value FROM spooled_times")

    def entries(self) -> Iterator[tuple[Path, str]]:
        """Yield paths and values in the order of an export."""
        for place, value in self._database.execute("SELECT place, value FROM spooled_tree ORDER BY place"):
            yield path_of_place(place), value

    def children(self, path: Path) -> Iterator[str]:
        """Yield the keys below a path, a look-up each."""
        above = place_of(path) + _END if path else b""
        place: bytes | None = above
        while place is not None:
            row = self._database.execute(
                "SELECT place FROM spooled_tree WHERE place >= ? AND place < ? ORDER BY place LIMIT 1",
                (place, above[:-1] + _AFTER if above else b"\xff"),
            ).fetchone()
            place = None
            if row is not None:
                key = row[0][len(above) :].split(_END, 1)[0]
                yield _key_of(key)
                place = above + key + _AFTER


@contextmanager
def _told_faults() -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as fault:
        raise ConfigurationError(f"the temporary directory cannot take the tree: {fault}") from fault


def place_of(path: Path) -> bytes:
    """Return what a path is sorted by."""
    return _END.join(map(_place_of_key, path))


def path_of_place(place: bytes) -> Path:
    """Return the path of a place."""
    return tuple(map(_key_of, place.split(_END)))


def _place_of_key(key: str) -> bytes:
    return _INDEX + bytes([MAX_INDEX_DIGITS + len(key)]) + key.encode() if is_index(key) else _NAME + key.encode()


def _key_of(place: bytes) -> str:
    return (place[2:] if place[:1] == _INDEX else place[1:]).decode()


@contextmanager
def open_tree_spool(directory: FilePath | None) -> Iterator[TreeSpool]:
    """Open an empty spool. Raises as `temporary_database`."""
    with temporary_database(directory, _TREE) as database:
        yield TreeSpool(database)
