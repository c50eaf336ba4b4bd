"""Renews the epochs of a restored database, and deletes the answers that Redis kept of calls lost with the restore."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from syncbeat_server.app.process import Stores, deployment_id
from syncbeat_server.audit.model import DEPLOYMENT, AuditAction, app_subject
from syncbeat_server.audit.record import record
from syncbeat_server.clock import SystemClock
from syncbeat_server.errors import ConfigurationError, DependencyDown
from syncbeat_server.storage.idempotency_cache import forget_answers
from syncbeat_server.storage.postgres.database import Database, open_database
from syncbeat_server.storage.postgres.roles import require_restricted_login
from syncbeat_server.storage.redis.bus import RedisBus, open_redis
from syncbeat_server.storage.schema_check import require_current_schema
from syncbeat_server.sync.feed.epoch_renewal import extent, renew_epochs
from syncbeat_server.sync.model import Extent


@dataclass(frozen=True)
class Renewal:
    """Result of a renewal. `answers` is the number of answers deleted from Redis; None if Redis was skipped."""

    scopes: int
    generation: int
    answers: int | None


class RestoredDatabase:
    """Restored database, and the Redis of its deployment, for one run of the command."""

    def __init__(self, database: Database, bus: RedisBus | None, app_id: str | None) -> None:
        """`app_id` None means all apps, `bus` None that Redis is left alone."""
        self._database = database
        self._bus = bus
        self._app_id = app_id

    async def extent(self) -> Extent:
        """Return the number of scopes and apps to renew.

        Raises:
            ConfigurationError: the app that was named has no scope.
            DependencyDown: the database does not answer.
        """
        found = await extent(self._database, self._app_id)
        if self._app_id is not None and not found.scopes:
            raise ConfigurationError(f"--app: {self._app_id!r} has no scopes in the database {found.database!r}")
        return found

    async def renew(self, on_progress: Callable[[int], None]) -> Renewal:
        """Renew the epochs; `on_progress` gets the number of scopes done so far. Raises as `renew_epochs`."""
        # Pages of scopes are transactions of their own: the entry is there before the first.
        app_id = self._app_id or DEPLOYMENT
        async with self._database.transaction() as conn:
            await record(conn, app_id, AuditAction.EPOCHS_RENEWED, app_subject(app_id))
        scopes, generation = await renew_epochs(self._database, SystemClock(), self._app_id, on_progress)
        answers = None if self._bus is None else await forget_answers(self._bus)
        return Renewal(scopes, generation, answers)


@asynccontextmanager
async def open_restored(stores: Stores, app_id: str | None, *, skip_redis: bool) -> AsyncIterator[RestoredDatabase]:
    """Open the stores as the service does, and check that both answer before anything is changed.

    Raises:
        ConfigurationError: the login is not the service's.
        DependencyDown: PostgreSQL or Redis does not answer.
        MigrationNeeded: the backup is of an older version.
    """
    async with open_database(stores.database_url, size=1, name="syncbeat-new-epoch") as database:
        async with database.connection() as conn:
            await require_restricted_login(conn)
            await require_current_schema(conn)
        if skip_redis:
            yield RestoredDatabase(database, None, app_id)
            return
        async with open_redis(stores.redis_url, SystemClock(), await deployment_id(database)) as bus:
            try:
                await bus.present(["check"])
            except DependencyDown as error:
                raise DependencyDown(
                    f"{error.message}, and may keep answers of calls that the restore took back: start it, or give "
                    "--skip-redis and flush it before it is used again"
                ) from error
            yield RestoredDatabase(database, bus, app_id)
