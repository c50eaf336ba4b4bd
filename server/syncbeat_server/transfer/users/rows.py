"""Counts and reads the rows of one user, by the declaration of `transfer.users.tables`."""

from __future__ import annotations

from collections.abc import AsyncIterator

from syncbeat_server.storage.postgres.snapshot import Snapshot
from syncbeat_server.transfer.users.tables import UserTable


async def count_user_rows(snapshot: Snapshot, name: str, table: UserTable, app_id: str, user_id: str) -> int:
    """Return how many rows of a user a table has."""
    query = f"SELECT count(*) AS found FROM {name} WHERE app_id = $1 AND {table.where}"  # noqa: S608  # constants of the declaration
    return sum([row["found"] async for row in snapshot.rows(query, app_id, user_id)])


async def user_rows(snapshot: Snapshot, name: str, table: UserTable, app_id: str, user_id: str) -> AsyncIterator[str]:
    """Yield the rows of a user in a table, each a JSON object of its exported columns."""
    columns = ", ".join(f"{table.shown.get(column, column)} AS {column}" for column in table.columns)
    query = f"""SELECT to_jsonb(shown)::text AS row
        FROM (SELECT {columns} FROM {name} WHERE app_id = $1 AND {table.where} ORDER BY 1, 2) shown"""  # noqa: S608  # constants of the declaration
    async for row in snapshot.rows(query, app_id, user_id):
        yield row["row"]
