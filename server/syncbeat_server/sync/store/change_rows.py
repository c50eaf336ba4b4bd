"""Converts rows of `changes` to changes as readers receive them."""

from __future__ import annotations

import asyncio

from syncbeat_server.defaults import VALUE_OCTETS
from syncbeat_server.storage.postgres.database import Row
from syncbeat_server.sync.content.legacy_numbers import shorten_numbers
from syncbeat_server.sync.model import Change

MAX_READ_OCTETS = 32 << 20
"""The largest text that is read of a value from before those constraints: 1 MiB in PostgreSQL's form may exceed it."""


async def change_of(row: Row, scope: str, epoch: str) -> Change:
    """Return a row as a change.

    `value_octets` is the size of its value; `value` is None where that is too large to read.
    """
    value, octets = row["value"], row["value_octets"]
    if value is not None and octets > VALUE_OCTETS:
        # In a thread, so that the event loop goes on between one number and the next.
        value = await asyncio.to_thread(shorten_numbers, value)
    return Change(
        scope=scope,
        epoch=epoch,
        key=row["key"],
        value_json=value or "",
        deleted=row["deleted"],
        sequence=row["sequence"],
        changed_at=row["changed_at"],
        omitted_octets=octets if value is None and not row["deleted"] else 0,
        source_time=row["source_time"],
    )
