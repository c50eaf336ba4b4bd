"""Spares each connection the driver's own look-up of array types: it is read once, and told to all (ADR 150)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import asyncpg

# The arrays of PostgreSQL's own types, by number (pg_type.dat), which is the same on every server. The driver knows the
# elements, and would look each array up when a connection meets it: by statements without a comment of ours, and with a
# setting of the session, which a transaction pooler hands on to others.
_ARRAYS = (199, 1000, 1001, 1003, 1005, 1007, 1015, 1016, 1021, 1022, 1041, 1115, 1182, 1185, 1187, 1231, 2951, 3807)


async def read_array_types(conn: asyncpg.Connection) -> Sequence[asyncpg.Record]:
    """Return what the driver wants to know of array types, for `know_types` on this and every later connection.

    Without JIT, which takes longer to compile that query than it takes to run, as the driver itself does.
    """
    await conn.execute("BEGIN; SET LOCAL jit = off")
    types: Sequence[asyncpg.Record] = await conn.fetch(cast(Any, conn)._intro_query, _ARRAYS)
    await conn.execute("COMMIT")
    return types


def know_types(conn: asyncpg.Connection, types: Sequence[asyncpg.Record]) -> None:
    """Let a connection know these types, so that it looks none of them up."""
    cast(Any, conn)._protocol.get_settings().register_data_types(types)  # the driver does so after its own look-up
