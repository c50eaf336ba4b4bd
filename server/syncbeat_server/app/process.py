"""Opens what every role of a process shares: its settings, clock, metrics and stores."""

from __future__ import annotations

import asyncio
import hmac
import os
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from syncbeat_server.app.app_configuration import AppConfiguration
from syncbeat_server.app.operations.health import watch_health
from syncbeat_server.app.operations.slo import SloFeature, wire_slo
from syncbeat_server.app.operations.status import StatusFeature, identity_of, wire_status
from syncbeat_server.app.operations.store_start_checks import log_addresses, try_addresses
from syncbeat_server.app.operations.tracing import running_tracer
from syncbeat_server.app.process_rules import DEFAULT_RULES, ProcessRules
from syncbeat_server.app.tenants.secret_files import SecretFiles
from syncbeat_server.clock import Clock, SystemClock
from syncbeat_server.defaults import DEFAULT_APP
from syncbeat_server.directory.devices.presence import Presence
from syncbeat_server.errors import SyncbeatError
from syncbeat_server.ops.malloc_trim import trim_heaps
from syncbeat_server.ops.metrics import Metrics
from syncbeat_server.ops.settings.server import PreparedStatements, Role, Settings
from syncbeat_server.ops.shutdown_budget import CANCEL_AGAIN_S, ShutdownBudget
from syncbeat_server.ops.tracing.spans import Tracer
from syncbeat_server.ops.work_origin import fresh_context, name_of, task_origin
from syncbeat_server.push.delivery.channel import app_secret
from syncbeat_server.runtime.health_monitor import HealthMonitor
from syncbeat_server.runtime.worker_processes import WorkerProcesses, open_worker_processes
from syncbeat_server.storage.postgres.clock_skew import ClockSkew
from syncbeat_server.storage.postgres.database import Database, open_database
from syncbeat_server.storage.postgres.pg_notify import PgNotifier
from syncbeat_server.storage.postgres.pool.pool_figures import ACQUIRE_SECONDS
from syncbeat_server.storage.postgres.roles import require_restricted_login
from syncbeat_server.storage.postgres.stuck_sessions import watch_sessions
from syncbeat_server.storage.postgres.time_limits import ConnectionLife
from syncbeat_server.storage.redis.bus import RedisBus, open_redis
from syncbeat_server.storage.redis.failover_monitor import RedisMonitor
from syncbeat_server.storage.schema_check import require_current_schema
from syncbeat_server.sync.streams.hub import MAX_STREAM_AGE_S, Hub
from syncbeat_server.sync.streams.open_stream_limits import OpenStreamLimits

_WITHDRAW_S = 0.2
_PREPARE = {PreparedStatements.AUTO: None, PreparedStatements.ON: True, PreparedStatements.OFF: False}


@dataclass(frozen=True)
class Stores:
    """Addresses of the stores."""

    database_url: str
    redis_url: str


@dataclass(frozen=True)
class Process:
    """Everything that the roles of a process share."""

    settings: Settings
    rules: ProcessRules
    clock: Clock
    metrics: Metrics
    database: Database
    bus: RedisBus
    hub: Hub
    presence: Presence
    apps: AppConfiguration
    pg_notifier: PgNotifier
    shutdown: ShutdownBudget
    worker_processes: WorkerProcesses
    health: HealthMonitor
    secrets: SecretFiles
    status: StatusFeature
    slo: SloFeature
    tracer: Tracer | None


@asynccontextmanager
async def open_process(
    settings: Settings,
    stores: Stores,
    shutdown: ShutdownBudget,
    rules: ProcessRules = DEFAULT_RULES,
    role: Role | None = None,
) -> AsyncIterator[Process]:
    """Open the stores and run the background tasks that every role needs, for the block; None stands for SYNCBEAT_ROLE.

    Raises:
        ConfigurationError: a setting cannot be used, or Redis is a Cluster.
        DependencyDown: the database cannot be reached.
        MigrationNeeded: it is older than this code.
    """
    clock = SystemClock()
    async with open_database(
        stores.database_url,
        size=settings.database_pool_size,
        name=f"syncbeat {os.getpid()}",
        prepare=_PREPARE[settings.database_prepared_statements],
        timings=rules.database,
        life=ConnectionLife(settings.database_connection_life_s, settings.database_idle_s),
    ) as database:
        async with database.connection() as conn:
            await require_restricted_login(conn)
            await require_current_schema(conn)
        apps = AppConfiguration(settings, clock, rules.files_every_s)
        secrets = SecretFiles(settings, clock, rules.files_every_s)
        pg_notifier, metrics = PgNotifier(database, clock), Metrics()
        skew = ClockSkew(database, clock, metrics.storage.clock_skew)
        # Streams are spread as calls are: where connections are to end sooner, so are they.
        age_s = min(MAX_STREAM_AGE_S, settings.connection_age_s)
        hub = Hub(age_s, OpenStreamLimits(settings.streams_per_user, settings.streams_per_device))
        async with (
            open_redis(stores.redis_url, clock, await deployment_id(database), rules.redis) as bus,
            open_worker_processes() as workers,
            running_tracer(metrics, shutdown) as tracer,
        ):
            monitor = RedisMonitor(bus)
            metrics.storage.watch_redis(bus.health)
            metrics.storage.watch_pool(database, ACQUIRE_SECONDS)
            database.breaker.observer = bus.breaker.observer = metrics.resilience
            await monitor.start()
            log_addresses(settings, await try_addresses(settings, stores.database_url), bus.address)
            health = watch_health(database, bus.health, clock, rules.health)
            metrics.storage.watch_health(lambda: health.report)
            status = wire_status(identity_of(settings, role), clock, metrics, (database, bus), rules.status)
            background = [bus.run_publisher(), monitor.run(), apps.run(), pg_notifier.run(), skew.run(), health.run()]
            background += [watch_sessions(database, clock), trim_heaps(clock), status.own.run(), status.board.run()]
            slo = wire_slo(settings, database, clock, metrics)
            background += [secrets.run(), slo.counter.run(), slo.run()]
            secrets.on_change(partial(_follow_logins, secrets, database, bus))
            try:
                async with run_in_background(background):
                    yield Process(
                        *(settings, rules, clock, metrics, database, bus, hub, Presence(bus), apps),
                        *(pg_notifier, shutdown, workers, health, secrets, status, slo, tracer),
                    )
            finally:
                await shutdown.wait_for(status.board.withdraw(), _WITHDRAW_S)
                with suppress(SyncbeatError):  # it was told while it lasted
                    await shutdown.wait_for(slo.counter.write(), _WITHDRAW_S)


def _follow_logins(secrets: SecretFiles, database: Database, bus: RedisBus) -> None:
    """Log in at the stores by the secrets as they are now. Raises ConfigurationError for other stores."""
    urls = secrets.current.store_urls()
    if urls is not None:
        files = secrets.current.secret_files
        if "database_url" in files:
            database.log_in_by(urls[0])
        if "redis_url" in files:
            bus.address.log_in_by(urls[1])


async def deployment_id(database: Database) -> str:
    """Return the id that prefixes this database's names in Redis: 48 bits that reveal nothing of its secret.

    Includes the database's name, so that a copy under another one is a deployment of its own. Raises DependencyDown.
    """
    secret = await app_secret(database, DEFAULT_APP)
    async with database.connection() as conn:
        name: str = await conn.fetchval("SELECT current_database()::text")
    return hmac.digest(secret, b"redis\0" + name.encode(), "sha256").hex()[:12]


@asynccontextmanager
async def run_in_background(work: Sequence[Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """Run background tasks for the block. A task that fails ends the block, and the process with it."""
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(one, name=name_of(one), context=fresh_context(task_origin(name_of(one)))) for one in work
        ]
        try:
            yield
        finally:
            # More than once: a client library may take a cancellation for the end of its own timeout and go on.
            while pending := [task for task in tasks if not task.done()]:
                for task in pending:
                    task.cancel()
                await asyncio.wait(pending, timeout=CANCEL_AGAIN_S)
