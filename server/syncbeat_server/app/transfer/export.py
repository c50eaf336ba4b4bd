"""Opens the database for one run of a command that moves data, and tells the servers of callers that changed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from syncbeat_server.app.change_notifier import Topic, wake_up_message
from syncbeat_server.app.process import Stores
from syncbeat_server.clock import SystemClock
from syncbeat_server.errors import DependencyDown
from syncbeat_server.storage.postgres.database import Database, open_database
from syncbeat_server.storage.postgres.roles import require_restricted_login, require_writable
from syncbeat_server.storage.postgres.snapshot import Snapshot, open_snapshot
from syncbeat_server.storage.redis.bus import open_redis
from syncbeat_server.storage.schema_check import require_current_schema


@asynccontextmanager
async def open_transfer(
    database_url: str, *, connections: int = 1, name: str = "syncbeat-transfer", writes: bool = True
) -> AsyncIterator[Database]:
    """Open the database as the service does, for one command, which may be one that `writes`.

    Raises:
        ConfigurationError: the login is not the service's, or nothing can be written here.
        DependencyDown: it does not answer.
        MigrationNeeded: it is of another version.
    """
    async with open_database(database_url, size=connections, name=name) as database:
        async with database.connection() as conn:
            await require_restricted_login(conn)
            await require_current_schema(conn)
            if writes:
                await require_writable(conn)
        yield database


@asynccontextmanager
async def open_export(database_url: str) -> AsyncIterator[Snapshot]:
    """Open the database as `open_transfer` does, a standby too, and hold one moment of it. Raises the same."""
    async with open_transfer(database_url, writes=False) as database, open_snapshot(database) as snapshot:
        yield snapshot


async def check_writes(database_url: str) -> None:
    """Check that a command can write, before it reads for long. Raises as `open_transfer`."""
    async with open_transfer(database_url):
        pass


async def tell_callers(stores: Stores, deployment: str, callers: Sequence[tuple[str, str]]) -> bool:
    """Make every process check these callers (app, user) again. Returns False if Redis does not answer."""
    try:
        async with open_redis(stores.redis_url, SystemClock(), deployment) as bus:
            for app_id, user_id in callers:
                await bus.announce(Topic.CALLERS, wake_up_message(app_id, user_id))
    except DependencyDown:
        return False
    return True
