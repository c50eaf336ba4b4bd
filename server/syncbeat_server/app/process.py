"""What every role of a process shares: its settings, clock, metrics and open stores."""

from __future__ import annotations

import asyncio
import hmac
import os
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from syncbeat_server.app.app_configuration import Apps
from syncbeat_server.clock import Clock, SystemClock
from syncbeat_server.defaults import DEFAULT_APP
from syncbeat_server.directory.presence import Presence
from syncbeat_server.ops.metrics import Metrics
from syncbeat_server.ops.settings.server import Settings
from syncbeat_server.ops.shutdown_budget import ShutdownBudget
from syncbeat_server.push.delivery.channel import app_secret
from syncbeat_server.runtime.worker_processes import WorkerProcesses, open_worker_processes
from syncbeat_server.storage.migrate import require_current_schema, require_restricted_login
from syncbeat_server.storage.postgres.clock_skew import ClockSkew
from syncbeat_server.storage.postgres.database import Database, open_database
from syncbeat_server.storage.postgres.pg_notify import PgNotifier
from syncbeat_server.storage.postgres.stuck_sessions import watch_sessions
from syncbeat_server.storage.redis.bus import RedisBus, open_redis
from syncbeat_server.storage.redis.monitor import RedisMonitor
from syncbeat_server.sync.streams.hub import MAX_STREAM_AGE_S, Hub

_CANCEL_AGAIN_S = 0.2


@dataclass(frozen=True)
class Stores:
    """Where the stores are."""

    database_url: str
    redis_url: str


@dataclass(frozen=True)
class Process:
    """What every role of a process shares."""

    settings: Settings
    clock: Clock
    metrics: Metrics
    database: Database
    bus: RedisBus
    hub: Hub
    presence: Presence
    apps: Apps
    notices: PgNotifier
    ending: ShutdownBudget
    worker_processes: WorkerProcesses


@asynccontextmanager
async def opened(settings: Settings, stores: Stores, ending: ShutdownBudget) -> AsyncIterator[Process]:
    """Open the stores and make what every role needs; closed at the end of the block.

    Raises:
        ConfigurationError: a setting cannot be used, or Redis is a Cluster.
        DependencyDown: the database cannot be reached.
        MigrationNeeded: it is older than this code.
    """
    clock = SystemClock()
    async with open_database(
        stores.database_url, size=settings.database_pool_size, name=f"syncbeat {os.getpid()}"
    ) as database:
        async with database.connection() as conn:
            await require_restricted_login(conn)
            await require_current_schema(conn)
        apps = Apps(settings, clock)
        notices, metrics = PgNotifier(database, clock), Metrics()
        skew = ClockSkew(database, clock, metrics.storage.clock_skew)
        # Streams are spread as calls are: where connections are to end sooner, so are they.
        age_s = min(MAX_STREAM_AGE_S, settings.connection_age_s)
        hub = Hub(age_s, settings.streams_per_user, settings.streams_per_device)
        async with (
            open_redis(stores.redis_url, clock, await deployment(database)) as bus,
            open_worker_processes() as aside,
        ):
            watch = RedisMonitor(bus)
            metrics.storage.watch_redis(bus.health)
            await watch.start()
            chores = [bus.run_publisher(), watch.run(), apps.run(), notices.run(), skew.run()]
            async with running([*chores, watch_sessions(database, clock)]):
                yield Process(settings, clock, metrics, database, bus, hub, Presence(bus), apps, notices, ending, aside)


async def deployment(database: Database) -> str:
    """What the names in Redis of all who use this database begin with: 48 bits that tell nothing of its secret.

    With the database's name, so that a copy under another one is a deployment of its own. Raises DependencyDown.
    """
    secret = await app_secret(database, DEFAULT_APP)
    async with database.connection() as conn:
        name: str = await conn.fetchval("SELECT current_database()::text")
    return hmac.digest(secret, b"redis\0" + name.encode(), "sha256").hex()[:12]


@asynccontextmanager
async def running(work: Sequence[Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """Run background work for the block. Work that fails ends the block, and the process with it."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one) for one in work]
        try:
            yield
        finally:
            # More than once: a client library may take a cancellation for the end of its own timeout and go on.
            while pending := [task for task in tasks if not task.done()]:
                for task in pending:
                    task.cancel()
                await asyncio.wait(pending, timeout=_CANCEL_AGAIN_S)
