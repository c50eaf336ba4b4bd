"""Rows of `changes` as readers are sent them."""

from __future__ import annotations

import asyncio

from syncbeat_server.storage.postgres.database import Row
from syncbeat_server.sync.content.number_spelling import sendable
from syncbeat_server.sync.model import Change

MAX_OCTETS = 1 << 20
"""The most octets of a value as text, or as PostgreSQL holds it; two constraints of the table see to it."""
MOST_READ_OCTETS = 32 << 20
"""The most that is read of a value from before those constraints: more than 1 MiB in PostgreSQL's form comes to."""


async def change_of(row: Row, scope: str, epoch: str) -> Change:
    """Returns a row as a change. `value_octets` is what its value has; `value` is None where that is too much."""
    value, octets = row["value"], row["value_octets"]
    if value is not None and octets > MAX_OCTETS:
        # A thread lets others go on between one number and the next.
        value = await asyncio.to_thread(sendable, value)
    return Change(
        scope=scope,
        epoch=epoch,
        key=row["key"],
        value_json=value or "",
        deleted=row["deleted"],
        sequence=row["sequence"],
        changed_at=row["changed_at"],
        omitted_octets=octets if value is None and not row["deleted"] else 0,
    )
