"""Bare transactions that write the rows of an ingested event by asyncpg: what EventService is compared with.

The columns are those that the service wrote for one event of its own, so that they stay the same rows when the schema
changes; only keys, times and values differ from row to row.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import asyncpg
import uvloop

from bench.h2load import Load

CALLERS = 64
SCOPES, SUBJECTS = 100, 1_000

_BEGAN = datetime(2026, 11, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Row:
    """A row that the service wrote: its table, its columns with their types, and what it wrote there."""

    table: str
    types: Mapping[str, str]
    values: Mapping[str, Any]

    def insert(self, then: str = "") -> str:
        """Return the statement that inserts such a row, and what follows it."""
        places = ", ".join(f"${place}::{kind}" for place, kind in enumerate(self.types.values(), 1))
        return f"INSERT INTO {self.table} AS t ({', '.join(self.types)}) VALUES ({places}) {then}"  # noqa: S608  # names

    def arguments(self, **others: Any) -> list[Any]:
        """Return the values of such a row with other values in some columns."""
        unknown = others.keys() - self.types.keys()
        assert not unknown, f"{self.table} has no columns {unknown}"
        return [others.get(column, value) for column, value in self.values.items()]


@dataclass(frozen=True)
class EventRows:
    """The rows of one event of one change: the event, the head of its order, its scope, and the change."""

    event: Row
    order: Row
    scope: Row
    change: Row


async def read_rows(admin_url: str, event_id: str, scope: str) -> EventRows:
    """Read the rows that the service wrote for its only event."""
    conn = await asyncpg.connect(admin_url)
    try:
        return EventRows(
            await _read_row(conn, "events", "event_id = $1", event_id),
            await _read_row(conn, "event_order_heads", "event_id = $1", event_id),
            await _read_row(conn, "scopes", "scope = $1", scope),
            await _read_row(conn, "changes", "scope = $1", scope),
        )
    finally:
        await conn.close()


async def _read_row(conn: asyncpg.Connection, table: str, where: str, *arguments: object) -> Row:
    columns = await conn.fetch(
        """SELECT attname, format_type(atttypid, NULL) AS kind FROM pg_attribute
           WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = ''
           ORDER BY attnum""",
        table,
    )
    types = {row["attname"]: row["kind"] for row in columns}
    found = await conn.fetch(f"SELECT {', '.join(types)} FROM {table} WHERE {where}", *arguments)  # noqa: S608  # names
    assert len(found) == 1, f"{table} has {len(found)} such rows"
    return Row(table, types, dict(found[0]))


class BareWriters:
    """As many callers as the service has, each with a connection and one transaction at a time."""

    def __init__(self, rows: EventRows) -> None:
        self._rows = rows
        self._numbers = count()
        self._connections: list[asyncpg.Connection] = []
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)

    def run(self, seconds: float) -> Load:
        """Write events for so many seconds."""
        return self._runner.run(self._run(seconds))

    async def open(self, url: str) -> None:
        """Connect, and let each connection prepare its statements."""
        self._connections = [await asyncpg.connect(url) for _ in range(CALLERS)]
        await asyncio.gather(*(self._write(conn, next(self._numbers)) for conn in self._connections))

    async def close(self) -> None:
        """Disconnect."""
        await asyncio.gather(*(conn.close() for conn in self._connections))

    async def _run(self, seconds: float) -> Load:
        began = time.perf_counter()

        async def write_on(conn: asyncpg.Connection) -> int:
            written = 0
            while time.perf_counter() - began < seconds:
                await self._write(conn, next(self._numbers))
                written += 1
            return written

        written = await asyncio.gather(*(write_on(conn) for conn in self._connections))
        return Load(sum(written), time.perf_counter() - began)

    async def _write(self, conn: asyncpg.Connection, number: int) -> None:
        rows, event_id = self._rows, f"bare-{number:08}"
        at = _BEGAN + timedelta(milliseconds=number)
        subject, scope = f"bare-{number % SUBJECTS:04}", f"bare-{number % SCOPES:03}"
        async with conn.transaction():
            await conn.execute(
                rows.event.insert(),
                *rows.event.arguments(event_id=event_id, subject=subject, ordering_key=subject, occurred_at=at),
            )
            await conn.execute(
                rows.order.insert(_MOVE_ORDER),
                *rows.order.arguments(event_id=event_id, ordering_key=subject, occurred_at=at),
            )
            head = await conn.fetchval(
                rows.scope.insert(_MOVE_SCOPE), *rows.scope.arguments(scope=scope, changed_at=at)
            )
            value = f'{{"page": {number}, "by": "bench"}}'
            await conn.execute(
                rows.change.insert(_WRITE_CHANGE),
                *rows.change.arguments(scope=scope, sequence=head, value=value, changed_at=at),
            )

    @contextmanager
    def opened(self, url: str) -> Iterator[BareWriters]:
        """Connect for the block."""
        with self._runner:
            self._runner.run(self.open(url))
            try:
                yield self
            finally:
                self._runner.run(self.close())


def _on_conflict(key: Sequence[str], updates: str) -> str:
    return f"ON CONFLICT ({', '.join(key)}) DO UPDATE SET {updates}"


_MOVE_ORDER = _on_conflict(
    ("app_id", "source", "ordering_key"), "event_id = excluded.event_id, occurred_at = excluded.occurred_at"
)
_MOVE_SCOPE = _on_conflict(("app_id", "scope"), "head = t.head + 1, changed_at = excluded.changed_at RETURNING head")
_WRITE_CHANGE = _on_conflict(
    ("app_id", "scope", "key"),
    "value = excluded.value, sequence = excluded.sequence, changed_at = excluded.changed_at",
)
