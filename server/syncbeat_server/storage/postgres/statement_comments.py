"""Ends every statement, also those of the driver itself, with a comment that says where it comes from (ADR 150)."""

from __future__ import annotations

from typing import Any

import asyncpg

from syncbeat_server.ops.work_origin import work_origin
from syncbeat_server.storage.postgres.hosts import Hosts


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
