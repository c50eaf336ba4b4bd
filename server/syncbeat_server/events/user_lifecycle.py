"""The lifecycle of a user across all features: shut out, let in, erased; each in one transaction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from syncbeat_server.auth import erase as auth
from syncbeat_server.directory import erase as directory
from syncbeat_server.push import erase as push
from syncbeat_server.storage.idempotency import forget_caller
from syncbeat_server.storage.postgres.database import Database


@dataclass(frozen=True, slots=True)
class Erased:
    """How much of a user there was."""

    devices: int
    memberships: int
    sessions: int
    cancelled: int


class UserLifecycle:
    """Disables, enables and deletes users."""

    def __init__(self, database: Database, told: Callable[[str, str], None]) -> None:
        """`told(app, user)` is called after each commit: caches and streams look again."""
        self._database = database
        self._told = told

    async def disable(self, app_id: str, user_id: str) -> None:
        """Shut a user out, and cancel what waits for its devices."""
        async with self._database.transaction() as conn:
            await auth.disable(conn, app_id, user_id)
            await push.cancel_user(conn, app_id, user_id)
        self._told(app_id, user_id)

    async def enable(self, app_id: str, user_id: str) -> None:
        """Let a user in that was shut out, or that nobody has heard of."""
        async with self._database.transaction() as conn:
            await auth.enable(conn, app_id, user_id)
        self._told(app_id, user_id)

    async def delete(self, app_id: str, user_id: str) -> Erased:
        """Erase a user: what it published stays, and so does that it was deleted, which keeps its tokens dead."""
        async with self._database.transaction() as conn:
            # The user's row first: sessions that are made meanwhile wait for it.
            sessions = await auth.erase(conn, app_id, user_id)
            await directory.begin_erasing(conn, app_id, user_id)
            cancelled = await push.erase(conn, app_id, user_id)
            await forget_caller(conn, app_id, f"user:{user_id}")
            devices, memberships = await directory.erase(conn, app_id, user_id)
        self._told(app_id, user_id)
        return Erased(devices, memberships, sessions, cancelled)
