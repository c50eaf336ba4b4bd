"""Applies one migration beside many rows under load, and measures whom it makes wait."""

from __future__ import annotations

import asyncio
import shutil
import statistics
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from syncbeat_server.storage.migrate import migrate
from tests.support.app_rows import PLANTS
from tests.support.databases import TEST_APP_LOGIN, DatabaseUrls

MOST_LOCKED_S = 1.0
"""The longest that a statement may wait for a lock of a migration."""
MOST_P99_S = 0.25
"""The 99th percentile of statements beside a migration. A quiet database has a few milliseconds; cores are shared."""
PROBES = 4
_BEFORE_S = 2.0
_PAUSE_S = 0.002
_CHUNK = 250_000
BUSIEST = ("changes",)
"""The tables that load goes to beside a migration of new tables only."""


@dataclass(frozen=True)
class MigrationFigures:
    """Figures of a migration: rows of each table, its seconds, and the statements beside it, in seconds."""

    rows: int
    took_s: float
    statements: int
    longest_s: float
    p99_s: float
    p99_before_s: float

    @property
    def passes(self) -> bool:
        """Tell if it made nobody wait for longer than it may."""
        return self.longest_s <= MOST_LOCKED_S and self.p99_s <= MOST_P99_S


def schema_before(folder: Path, target: Path, file: str) -> Path:
    """Copy the migrations before a file to `target`."""
    target.mkdir(exist_ok=True)
    for other in sorted(folder.glob("*.sql")):
        if other.name < file:
            shutil.copy(other, target)
    return target


async def measure(urls: DatabaseUrls, before: Path, file: Path, tables: Sequence[str], rows: int) -> MigrationFigures:
    """Migrate an empty database to `before`, plant rows, and apply a migration while statements read and write them."""
    await migrate(urls.owner_url, app_login=TEST_APP_LOGIN, directory=before)
    loaded = tables or BUSIEST
    await _plant(urls, loaded, rows)
    shutil.copy(file, before)
    over = asyncio.Event()
    taken: list[tuple[float, float]] = []
    async with asyncio.TaskGroup() as group:
        for number in range(PROBES):
            group.create_task(_probe(urls, loaded[number % len(loaded)], number, over, taken))
        with suppress(TimeoutError):
            await asyncio.wait_for(over.wait(), _BEFORE_S)  # the load alone
        began = time.monotonic()
        try:
            await migrate(urls.owner_url, app_login=TEST_APP_LOGIN, directory=before)
        finally:
            ended = time.monotonic()
            with suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), _BEFORE_S / 4)  # those that waited have ended
            over.set()
    beside = [took for at, took in taken if at + took >= began]
    return MigrationFigures(
        rows, ended - began, len(beside), max(beside), _p99(beside), _p99([took for at, took in taken if at < began])
    )


def _p99(seconds: Sequence[float]) -> float:
    return statistics.quantiles(seconds, n=100)[98] if len(seconds) > 1 else max(seconds, default=0.0)


async def _plant(urls: DatabaseUrls, tables: Sequence[str], rows: int) -> None:
    conn = await asyncpg.connect(urls.admin_url)
    try:
        await conn.execute("SET session_replication_role = replica")
        for table in tables:
            # An app for each chunk, so that no statement takes minutes and no key comes twice.
            for start in range(0, rows, _CHUNK):
                plant = PLANTS[table].format(app=f"app{start}", rows=min(_CHUNK, rows - start))
                await conn.execute(f"INSERT INTO {table} {plant}", timeout=600.0)
            await conn.execute(f"ANALYZE {table}", timeout=600.0)
    finally:
        await conn.close()


async def _probe(
    urls: DatabaseUrls, table: str, number: int, over: asyncio.Event, taken: list[tuple[float, float]]
) -> None:
    """Read and write rows of a table until it is over; each note is when a statement began and how long it took."""
    conn = await asyncpg.connect(urls.admin_url)
    try:
        key = await conn.fetch(
            """SELECT a.attname::text AS name FROM pg_index i
               JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY(i.indkey::int2[])
               WHERE i.indrelid = $1::text::regclass AND i.indisprimary""",
            table,
        )
        names = ", ".join(row["name"] for row in key)
        place = f"SELECT {names} FROM {table} WHERE app_id = 'app0' ORDER BY {names} OFFSET {number} LIMIT 1"
        statements = (
            f"SELECT * FROM {table} WHERE ({names}) = ({place})",
            f"UPDATE {table} SET app_id = app_id WHERE ({names}) = ({place})",
        )
        while not over.is_set():
            for statement in statements:
                began = time.monotonic()
                await conn.execute(statement)
                taken.append((began, time.monotonic() - began))
            with suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), _PAUSE_S)
    finally:
        await conn.close()
