"""Asks PostgreSQL whether it takes writes and is migrated, for the readiness of a process."""

from __future__ import annotations

from syncbeat_server.errors import DependencyDown, MigrationNeeded, Overloaded
from syncbeat_server.ops.work_origin import WorkRank, task_origin, work_origin
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.storage.postgres.driver_errors import SchemaMissing
from syncbeat_server.storage.schema_check import Migration, read_migrations, require_current_schema

# Before all calls: it waits for nobody's statements but those under way.
_PROBE = task_origin("health", WorkRank.PROMISE)


class DatabaseProbe:
    """Probes one database by the pool that calls use, so that it opens no connection of its own."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._migrations: list[Migration] = read_migrations()

    async def check_writes(self) -> None:
        """Check that PostgreSQL answers and takes writes; SELECT 1 works on a demoted primary too.

        Raises:
            DependencyDown: it does not answer, or takes no writes. Then connections are opened anew before their next
                use, for they lead to a server that was demoted.
        """
        work_origin.set(_PROBE)
        try:
            async with self._database.connection() as conn:
                read_only = await conn.fetchval("SELECT current_setting('transaction_read_only') = 'on'")
        except Overloaded:
            return  # every connection is at work, and some were given back meanwhile: it answers
        if read_only:
            await self._database.reconnect()
            raise DependencyDown("the database takes no writes")

    async def check_schema(self) -> None:
        """Check that the database is migrated as this code needs it.

        Raises:
            MigrationNeeded: it is not; the message has the fix.
            DependencyDown: it does not answer.
        """
        work_origin.set(_PROBE)
        try:
            async with self._database.connection() as conn:
                await require_current_schema(conn, migrations=self._migrations)
        except Overloaded:
            return
        except SchemaMissing as error:
            raise MigrationNeeded("tables of the service are missing: is the database being restored?") from error
