"""Reads any number of rows of one moment: cursors of the server in one transaction that reads only.

For commands that look at a whole app. Such a transaction lasts for as long as the reading takes, and PostgreSQL keeps
each row version of its moment until it ends; it has no transaction id, so that no firehose waits for it.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime

from syncbeat_server.storage.postgres.database import Connection, Database, Row
from syncbeat_server.storage.postgres.time_limits import BeginStatements

ROWS_PER_FETCH = 64
"""Rows that a cursor brings at once, of rows that are small."""
SIZED_ROWS_PER_FETCH, OCTETS_PER_FETCH = 256, 4 << 20
"""The most rows, and octets unless one row has more, that a cursor brings at once where sizes are asked first."""
_SIZES_PER_FETCH = 1_000
# A statement may have to walk all rows of a table for the first that it wants. What reads may be slow between two
# statements: a pipe whose reader stands still holds the snapshot for ten minutes.
_STATEMENT_S, _IDLE_S = 600.0, 600.0
_BEGIN = f"""BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
SET LOCAL lock_timeout = 4000;
SET LOCAL idle_in_transaction_session_timeout = {round(_IDLE_S * 1000)};
SET LOCAL statement_timeout = {round(_STATEMENT_S * 1000)};
SET LOCAL tcp_user_timeout = 15000;
SET LOCAL TimeZone = 'UTC'"""
_SNAPSHOT = BeginStatements(_BEGIN, f"{_BEGIN};\nSET LOCAL transaction_timeout = 0", _STATEMENT_S * 1.06)

_numbers = itertools.count(1)


class Snapshot:
    """One moment of the database. What reads it may have several cursors open, and asks them in turn."""

    def __init__(self, conn: Connection, taken_at: datetime) -> None:
        self._conn = conn
        self.taken_at = taken_at
        """The time of the moment, by `syncbeat_now()`."""

    async def rows(self, query: str, *args: object) -> AsyncIterator[Row]:
        """Yield the rows of a query, `ROWS_PER_FETCH` in memory at most. Raises as `Connection.fetch`."""
        async for row in self._pages(query, args, ROWS_PER_FETCH):
            yield row

    async def sized_rows(self, query: str, sizes: str, *args: object) -> AsyncIterator[Row]:
        """Yield the rows of a query that may be large, some megabytes in memory at most. Raises as `Connection.fetch`.

        `sizes` is a query with the same arguments of the rows' sizes in octets, as its column `octets`, in their order.
        """
        cursor = await self._declare(query, args)
        count = octets = 0
        async for size in self._pages(sizes, args, _SIZES_PER_FETCH):
            if count and (octets + size["octets"] > OCTETS_PER_FETCH or count == SIZED_ROWS_PER_FETCH):
                for row in await self._fetch(cursor, count):
                    yield row
                count = octets = 0
            count += 1
            octets += size["octets"]
        for row in await self._fetch(cursor, count):
            yield row
        await self._close(cursor)

    async def _pages(self, query: str, args: Sequence[object], count: int) -> AsyncIterator[Row]:
        cursor = await self._declare(query, args)
        while page := await self._fetch(cursor, count):
            for row in page:
                yield row
            if len(page) < count:
                break
        await self._close(cursor)

    async def _declare(self, query: str, args: Sequence[object]) -> str:
        # A name for each, so that no prepared FETCH is taken for one of a cursor with other columns.
        cursor = f"snapshot_rows_{next(_numbers)}"
        await self._conn.execute(f"DECLARE {cursor} NO SCROLL CURSOR FOR {query}", *args)
        return cursor

    async def _fetch(self, cursor: str, count: int) -> Sequence[Row]:
        return await self._conn.fetch(f"FETCH FORWARD {count} IN {cursor}") if count else []

    async def _close(self, cursor: str) -> None:
        await self._conn.execute(f"CLOSE {cursor}")


@asynccontextmanager
async def open_snapshot(database: Database) -> AsyncIterator[Snapshot]:
    """Hold one moment of the database for the block. Raises DependencyDown: the database does not answer."""
    async with database.transaction(begin=_SNAPSHOT) as conn:
        yield Snapshot(conn, await conn.fetchval("SELECT syncbeat_now()"))
