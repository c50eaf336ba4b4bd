"""Joins streams of rows that are in the same order, so that none of them has to be kept."""

from __future__ import annotations

from collections.abc import AsyncIterator

from syncbeat_server.storage.postgres.database import Row


class OrderedRows:
    """Stream of rows in the order of a column, taken group by group. The groups are asked for in that order."""

    def __init__(self, rows: AsyncIterator[Row], column: str) -> None:
        self._rows = rows
        self._column = column
        self._next: Row | None = None
        self._is_open = True

    async def name(self) -> str | None:
        """Return the name of the next group, or None at the end."""
        if self._next is None and self._is_open:
            self._next = await anext(self._rows, None)
            self._is_open = self._next is not None
        return None if self._next is None else self._next[self._column]

    async def group(self, name: str) -> AsyncIterator[Row]:
        """Yield the rows whose column is `name`; rows before it, of groups nobody asked for, are passed over."""
        # Code points are in the order of their UTF-8, which is that of these columns.
        while (found := await self.name()) is not None and found <= name:
            row, self._next = self._next, None
            if row is not None and found == name:
                yield row


async def first_name(*streams: OrderedRows) -> str | None:
    """Return the first of the streams' next groups, or None where all have ended."""
    found = [name for stream in streams if (name := await stream.name()) is not None]
    return min(found, default=None)
