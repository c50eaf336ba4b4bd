"""Erases a user by the code of DeleteUser, and tells by table what went and what stays."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from syncbeat_server.auth.accounts.user_access import require_user_id
from syncbeat_server.errors import DependencyDown, Overloaded
from syncbeat_server.events.user_lifecycle import UserLifecycle
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.storage.postgres.snapshot import Snapshot, open_snapshot
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
        """Take a database of two connections or more: one erases while another holds the moment before.

        `caller_changed(app, user)` is called after the commit, so that every process checks the user again.
        """
        self._database = database
        self._lifecycle = UserLifecycle(database, caller_changed)

    async def rows_of(self, app_id: str, user_id: str) -> dict[str, int]:
        """Return the number of rows of a user by table, of the tables in which it has any. Raises DependencyDown."""
        async with open_snapshot(self._database) as snapshot:
            return await _rows_of(snapshot, app_id, user_id)

    async def erase(self, app_id: str, user_id: str, announce: Callable[[], Awaitable[None]]) -> ErasedUser | None:
        """Erase a user as DeleteUser does, `announce` it, and only then count, which may take long in a large table.

        What was there is counted in a snapshot from before the erasure, on a connection of its own.

        Returns:
            What went and what stays; None if the user is erased, but the database did not answer how much that was.

        Raises:
            DependencyDown, Overloaded: nothing was erased.
            IdentityConflict: the id is a subject that is linked to another user, whom the message names.
        """
        erased = False
        try:
            async with open_snapshot(self._database) as snapshot:
                await self._lifecycle.delete(app_id, user_id)
                erased = True
                await announce()
                before = await _rows_of(snapshot, app_id, user_id)
            kept = await self.rows_of(app_id, user_id)
        except (DependencyDown, Overloaded):
            if not erased:
                raise
            return None
        gone = {name: count - kept.get(name, 0) for name, count in before.items()}
        return ErasedUser({name: count for name, count in gone.items() if count > 0}, kept)


async def is_known(database: Database, app_id: str, user_id: str) -> bool:
    """Return True if any table has a row of a user. It ends at the first, most often the row in `users`.

    Raises:
        DependencyDown: the database does not answer.
        IdentityConflict: the id is a subject that is linked to another user, whom the message names.
    """
    async with database.transaction() as conn:
        await require_user_id(conn, app_id, user_id)
    async with open_snapshot(database) as snapshot:
        for name, table in USER_TABLES.items():
            if await count_user_rows(snapshot, name, table, app_id, user_id):
                return True
    return False


async def _rows_of(snapshot: Snapshot, app_id: str, user_id: str) -> dict[str, int]:
    counts = {
        name: await count_user_rows(snapshot, name, table, app_id, user_id) for name, table in USER_TABLES.items()
    }
    return {name: count for name, count in counts.items() if count}
