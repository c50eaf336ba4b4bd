"""Answers operators: figures of this process, of all processes, and of what they share."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, replace

from syncbeat_server.status.asked import asked
from syncbeat_server.status.model import (
    BreakerStatus,
    DatabaseStatus,
    DeploymentStatus,
    MigrationStatus,
    ProcessStatus,
    QueueStatus,
)
from syncbeat_server.status.own_status import OwnStatus
from syncbeat_server.status.policy.shown_breakers import shown_breakers
from syncbeat_server.status.process_board import ProcessBoard
from syncbeat_server.status.slo_report import SloReporter
from syncbeat_server.status.store import server_connections
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.storage.schema_check import Migration, schema_state

_PUSH, _WEBHOOK = "push:", "webhook:"


@dataclass(frozen=True)
class StatusParts:
    """Sources of a status: this process, the others, and the objectives of all."""

    own: OwnStatus
    board: ProcessBoard
    slo: SloReporter


class StatusService:
    """Reads the status of a deployment. What a store does not answer is absent."""

    def __init__(
        self,
        parts: StatusParts,
        database: Database,
        migrations: Sequence[Migration],
        queue: Callable[[str], Awaitable[QueueStatus]],
        apps: Callable[[], frozenset[str]],
    ) -> None:
        """`queue(app)` returns the push queue of an app; `apps` the apps that there are. `migrations` are the files."""
        self._own = parts.own
        self._board = parts.board
        self._slo = parts.slo
        self._database = database
        self._migrations = migrations
        self._queue = queue
        self._apps = apps

    async def read(self, app_id: str, allowed: Collection[str]) -> DeploymentStatus:
        """Return the status of the deployment, with the queue of an app, for a caller that may act for `allowed`."""
        (processes, omitted), database, queue, stands = await asyncio.gather(
            self._board.read(), asked(self._read_database()), asked(self._queue(app_id)), self._slo.standing()
        )
        own = self._own.read()
        return DeploymentStatus(
            own=self._shown(own, allowed),
            processes=tuple(self._shown(own if one.key == own.key else one, allowed) for one in processes),
            omitted=omitted,
            database=DatabaseStatus() if database is None else database,
            queue=queue,
            objectives=() if stands is None else stands.objectives,
        )

    async def _read_database(self) -> DatabaseStatus:
        async with self._database.connection() as conn:
            connections = await server_connections.count_by_state(conn)
            state = await schema_state(conn, migrations=self._migrations)
        applied = max((int(name[:4]) for name in state.applied), default=0)
        return DatabaseStatus(connections, MigrationStatus(applied, self._migrations[-1].version))

    def _shown(self, status: ProcessStatus, allowed: Collection[str]) -> ProcessStatus:
        """Leave out what tells of apps for which the caller may not act."""
        for_all = self._apps() <= frozenset(allowed)
        breakers = shown_breakers(one for one in status.breakers if _may_see(one, allowed, for_all=for_all))
        return replace(status, breakers=breakers)


def _may_see(breaker: BreakerStatus, allowed: Collection[str], *, for_all: bool) -> bool:
    if breaker.name.startswith(_PUSH):
        return breaker.name.removeprefix(_PUSH) in allowed
    return for_all or not breaker.name.startswith(_WEBHOOK)
