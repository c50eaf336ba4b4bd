"""Wires the status of a process: what its parts tell of themselves, and by what processes know of each other."""

from __future__ import annotations

import platform
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from os import getpid

from syncbeat_server import __version__
from syncbeat_server.app.operations.slo import SloFeature
from syncbeat_server.app.process_rules import StatusRules
from syncbeat_server.clock import Clock
from syncbeat_server.ops.metrics import Metrics
from syncbeat_server.ops.metrics.ratelimit import LimitFigures
from syncbeat_server.ops.metrics.rpc import CALL_SECONDS
from syncbeat_server.ops.settings.server import Role, Settings
from syncbeat_server.push.service import PushService
from syncbeat_server.status.model import BuildStatus, LimitStatus, PoolStatus, QueueStatus
from syncbeat_server.status.own_status import CallSource, Identity, OwnStatus
from syncbeat_server.status.process_board import ProcessBoard
from syncbeat_server.status.service import StatusParts, StatusService
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.storage.redis.bus import RedisBus
from syncbeat_server.storage.schema_check import read_migrations


@dataclass(frozen=True)
class StatusFeature:
    """Status of one process: `own` is what its parts add to, `board` what others read and it must withdraw from."""

    own: OwnStatus
    board: ProcessBoard


def process_name() -> str:
    """Return the name of this process for operators."""
    return f"{socket.gethostname()}:{getpid()}"


def build_status(revision: str) -> BuildStatus:
    """Return what this process runs. gRPC is not loaded for it: a worker has none."""
    return BuildStatus(__version__, revision, platform.python_version(), version("grpcio"))


def wire_status(
    identity: Identity, clock: Clock, metrics: Metrics, stores: tuple[Database, RedisBus], rules: StatusRules
) -> StatusFeature:
    """Create the status of a process, with what every role has."""
    database, bus = stores
    own = OwnStatus(
        identity, clock, CallSource(CALL_SECONDS, metrics.rpc.counts), lambda: _pool(database), rules.window
    )
    own.add_breakers(lambda: (database.breaker, bus.breaker))
    return StatusFeature(own, ProcessBoard(own, database, bus, clock, rules.board))


def identity_of(settings: Settings, role: Role | None) -> Identity:
    """Return the identity of this process; None stands for SYNCBEAT_ROLE."""
    return Identity(process_name(), role or settings.role, build_status(settings.revision))


def limit_status(figures: LimitFigures, metrics: Metrics) -> Callable[[], LimitStatus]:
    """Return what reads the rates of callers, as this process holds calls against them."""
    return lambda: LimitStatus(figures.is_shared, figures.size, metrics.limits.refusals, figures.decided_locally)


def status_service(
    feature: StatusFeature, slo: SloFeature, database: Database, push: PushService, apps: Callable[[], Iterable[str]]
) -> StatusService:
    """Create what answers GetStatus."""

    async def queue(app_id: str) -> QueueStatus:
        depth = await push.queue_depth(app_id)
        return QueueStatus(
            {state.value: count for state, count in depth.counts.items()}, depth.oldest_overdue_s, depth.truncated
        )

    parts = StatusParts(feature.own, feature.board, slo.reporter)
    return StatusService(parts, database, read_migrations(), queue, lambda: frozenset(apps()))


def _pool(database: Database) -> PoolStatus:
    now = database.pool_status
    return PoolStatus(now.size, now.connections, now.in_use, now.waiters, now.acquire_p95_s)
