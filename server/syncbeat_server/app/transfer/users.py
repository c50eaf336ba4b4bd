"""Opens the stores for one run of a command that erases a user."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from syncbeat_server.app.process import Stores, deployment_id
from syncbeat_server.app.transfer.export import open_transfer, tell_callers
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.transfer.users.erasure import ErasedUser, UserErasure, is_known


class StoredUsers:
    """Users of a deployment. `untold` becomes True where Redis could not tell the servers of an erasure."""

    def __init__(self, database: Database, stores: Stores, deployment: str) -> None:
        """Take a database as `UserErasure` does."""
        self._database = database
        self._changed: list[tuple[str, str]] = []
        self._erasure = UserErasure(database, lambda app_id, user_id: self._changed.append((app_id, user_id)))
        self._stores = stores
        self._deployment = deployment
        self.untold = False

    async def rows_of(self, app_id: str, user_id: str) -> dict[str, int]:
        """Return the number of rows of a user by table, of the tables in which it has any. Raises DependencyDown."""
        return await self._erasure.rows_of(app_id, user_id)

    async def is_known(self, app_id: str, user_id: str) -> bool:
        """Tell if anything is stored of a user. Raises DependencyDown, IdentityConflict, as `is_known`."""
        return await is_known(self._database, app_id, user_id)

    async def erase(self, app_id: str, user_id: str) -> ErasedUser | None:
        """Erase a user, tell the servers, and count what went and what stays: None if that could not be counted.

        Raises:
            DependencyDown, Overloaded, IdentityConflict: as `UserErasure.erase`, and nothing was erased.
        """
        return await self._erasure.erase(app_id, user_id, self._tell)

    async def _tell(self) -> None:
        self.untold = not await tell_callers(self._stores, self._deployment, self._changed)


@asynccontextmanager
async def open_users(stores: Stores) -> AsyncIterator[StoredUsers]:
    """Open the database as the service does. Raises as `open_transfer`."""
    async with open_transfer(stores.database_url, connections=2) as database:
        yield StoredUsers(database, stores, await deployment_id(database))


async def is_stored(stores: Stores, app_id: str, user_id: str) -> bool:
    """Tell if anything is stored of a user, to a command that reads. Raises as `open_transfer` and `is_known`."""
    async with open_transfer(stores.database_url, writes=False) as database:
        return await is_known(database, app_id, user_id)
