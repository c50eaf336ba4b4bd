"""Connects so that every statement, also those of the driver itself, says where it comes from (ADR 150)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import asyncpg

from syncbeat_server.ops.work_origin import work_origin
from syncbeat_server.storage.postgres.hosts import Hosts

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


class CommentedConnection(asyncpg.Connection):
    """Connection whose statements end with the comment of the method or task that runs them.

    Below these methods the driver has none that takes a statement's text from us: BEGIN, COMMIT, LISTEN and its own
    queries go through them. They are no coroutines, which saves a frame for each statement.
    """

    def execute(self, query: str, *args: Any, **options: Any) -> Any:
        """Run a statement, or several without arguments, for the effect."""
        return super().execute(work_origin.get().told(query), *args, **options)

    def executemany(self, command: str, *args: Any, **options: Any) -> Any:
        """Run a statement once for each row of arguments."""
        return super().executemany(work_origin.get().told(command), *args, **options)

    def fetch(self, query: str, *args: Any, **options: Any) -> Any:
        """Return all rows of a statement."""
        return super().fetch(work_origin.get().told(query), *args, **options)

    def fetchrow(self, query: str, *args: Any, **options: Any) -> Any:
        """Return the first row of a statement, or None."""
        return super().fetchrow(work_origin.get().told(query), *args, **options)

    def fetchval(self, query: str, *args: Any, **options: Any) -> Any:
        """Return a column of the first row of a statement, or None."""
        return super().fetchval(work_origin.get().told(query), *args, **options)


async def connect_apart(hosts: Hosts, url: str, name: str, timeout_s: float) -> asyncpg.Connection:
    """Open a connection outside the pool, for a few statements, that the server lists under this name.

    Raises:
        Exception: as `Hosts.connect`.
    """
    return await hosts.connect(
        url,
        timeout=timeout_s,
        statement_cache_size=0,
        server_settings={"application_name": name},
        connection_class=CommentedConnection,
    )
