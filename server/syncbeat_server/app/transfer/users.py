"""Opens the stores for one run of a command that erases a user."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from syncbeat_server.app.process import Stores, deployment_id
from syncbeat_server.app.transfer.export import open_transfer, tell_callers
from syncbeat_server.transfer.users.erasure import ErasedUser, UserErasure


class StoredUsers:
    """Users of a deployment. `untold` becomes True where Redis could not tell the servers of an erasure."""

    def __init__(self, erasure: UserErasure, changed: list[tuple[str, str]], stores: Stores, deployment: str) -> None:
        """`changed` is what the erasure notes of users to check again."""
        self._erasure = erasure
        self._changed = changed
        self._stores = stores
        self._deployment = deployment
        self.untold = False

    async def rows_of(self, app_id: str, user_id: str) -> dict[str, int]:
        """Return the number of rows of a user by table, of the tables in which it has any. Raises DependencyDown."""
        return await self._erasure.rows_of(app_id, user_id)

    async def is_known(self, app_id: str, user_id: str) -> bool:
        """Tell if anything is stored of a user. Raises DependencyDown, IdentityConflict, as `UserErasure.is_known`."""
        return await self._erasure.is_known(app_id, user_id)

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
    changed: list[tuple[str, str]] = []
    async with open_transfer(stores.database_url, connections=2) as database:
        erasure = UserErasure(database, lambda app_id, user_id: changed.append((app_id, user_id)))
        yield StoredUsers(erasure, changed, stores, await deployment_id(database))
