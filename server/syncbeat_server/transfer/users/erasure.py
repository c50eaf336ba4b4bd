"""Erases a user by the code of DeleteUser, and tells by table what went and what stays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from syncbeat_server.events.user_lifecycle import UserLifecycle
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.transfer.users.rows import count_user_rows
from syncbeat_server.transfer.users.tables import USER_TABLES


@dataclass(frozen=True)
class ErasedUser:
    """Result of an erasure: rows deleted and rows that stay, by table, those with any."""

    deleted: Mapping[str, int]
    kept: Mapping[str, int]


class UserErasure:
    """Counts what is stored of users, and erases one."""

    def __init__(self, database: Database, caller_changed: Callable[[str, str], None]) -> None:
        """`caller_changed(app, user)` is called after the commit, so that every process checks the user again."""
        self._database = database
        self._lifecycle = UserLifecycle(database, caller_changed)

    async def rows_of(self, app_id: str, user_id: str) -> dict[str, int]:
        """Return the number of rows of a user by table, of the tables in which it has any. Raises DependencyDown."""
        async with self._database.connection() as conn:
            counts = {
                name: await count_user_rows(conn, name, table, app_id, user_id) for name, table in USER_TABLES.items()
            }
        return {name: count for name, count in counts.items() if count}

    async def erase(self, app_id: str, user_id: str) -> ErasedUser:
        """Erase a user as DeleteUser does.

        Raises:
            DependencyDown: nothing was erased.
            IdentityConflict: the id is a subject that is linked to another user, whom the message names.
        """
        before = await self.rows_of(app_id, user_id)
        await self._lifecycle.delete(app_id, user_id)
        kept = await self.rows_of(app_id, user_id)
        gone = {name: count - kept.get(name, 0) for name, count in before.items()}
        return ErasedUser({name: count for name, count in gone.items() if count > 0}, kept)
