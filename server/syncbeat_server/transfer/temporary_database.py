"""Opens databases of SQLite for what is too much for memory and needed for one run of a command."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from syncbeat_server.errors import ConfigurationError

CACHE_KIB = 32_768
_SETUP = f"""
    PRAGMA journal_mode = OFF;
    PRAGMA synchronous = OFF;
    PRAGMA locking_mode = EXCLUSIVE;
    PRAGMA temp_store = FILE;
    PRAGMA cache_size = -{CACHE_KIB};
"""


@contextmanager
def temporary_database(directory: Path | None, schema: str) -> Iterator[sqlite3.Connection]:
    """Open an empty database of SQLite in a temporary directory below this one, which goes with the block.

    None is the system's. Nothing in it outlives a crash, and it needs no more memory than its cache.

    Raises:
        ConfigurationError: the directory cannot be written.
    """
    try:
        with TemporaryDirectory(prefix="syncbeat-", dir=directory) as folder:
            database = sqlite3.connect(Path(folder) / "spool.sqlite", isolation_level=None)
            try:
                database.executescript(f"{_SETUP}{schema}")
                database.execute("BEGIN")
                yield database
            finally:
                database.close()
    except (OSError, sqlite3.OperationalError) as fault:
        raise ConfigurationError(f"the temporary directory cannot be written: {fault}") from fault
