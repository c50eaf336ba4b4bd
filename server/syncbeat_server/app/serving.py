"""Runs one process: opens the stores, wires the features, serves until told to stop, drains, closes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from syncbeat_server.app.authentication import session_rows
from syncbeat_server.app.change_notifier import listen_for_changes
from syncbeat_server.app.events.ingest import running_retries
from syncbeat_server.app.operations.health import pool_view
from syncbeat_server.app.process import Process, Stores, open_process, run_in_background
from syncbeat_server.app.process_rules import DEFAULT_RULES, ProcessRules
from syncbeat_server.app.push.worker import running_worker
from syncbeat_server.app.rpc import rpc_caches, running_rpc
from syncbeat_server.app.tenants.configuration_audit import ConfigurationAudit
from syncbeat_server.auth.tokens.keys import public_jwks
from syncbeat_server.defaults import DEFAULT_APP
from syncbeat_server.errors import ConfigurationError
from syncbeat_server.ops.garbage_collector import spare_started_process
from syncbeat_server.ops.group_metrics.process_exchange import ProcessExchange
from syncbeat_server.ops.group_metrics.snapshot import Collected
from syncbeat_server.ops.settings.server import Role, Settings
from syncbeat_server.ops.shutdown_budget import ShutdownBudget, cancelled_on_stop
from syncbeat_server.ops.work_origin import WorkRank, task_origin, work_origin
from syncbeat_server.push.delivery.worker import DeliveryWorker

_log = logging.getLogger(__name__)

_STARTING = task_origin("start", WorkRank.CALL)


async def serve(
    settings: Settings,
    stores: Stores,
    role: Role,
    stop: asyncio.Event,
    ready: Callable[[str], None],
    rules: ProcessRules = DEFAULT_RULES,
) -> None:
    """Run one process in its role until `stop` is set, then drain it. `ready(address)` is called once it serves.

    Raises:
        ConfigurationError: a setting cannot be used (a key, an address).
        DependencyDown: the database cannot be reached at the start.
        MigrationNeeded: it is older than this code.
    """
    work_origin.set(_STARTING)
    shutdown = ShutdownBudget(settings.drain_s)
    with cancelled_on_stop(stop) as started:
        async with AsyncExitStack() as stack:
            process = await stack.enter_async_context(open_process(settings, stores, shutdown, rules, role))
            worker: DeliveryWorker | None = None
            if role is not Role.RPC:
                worker = await stack.enter_async_context(running_worker(process))
            metrics_now = await stack.enter_async_context(_metrics_of_group(process))
            if settings.ops_listen:
                # Until the process has drained: it shows what drains, and that it is not ready.
                await stack.enter_async_context(_operator_endpoint(process, metrics_now))
            address, caches = "worker", None
            if role is not Role.WORKER:
                caches = await stack.enter_async_context(rpc_caches(process))
                address = await stack.enter_async_context(running_rpc(process, worker, caches))
            elif worker is not None:
                await stack.enter_async_context(running_retries(process, worker))
            audit = ConfigurationAudit(process.database, process.apps)
            await audit.record()
            background = [listen_for_changes(process, worker, caches), audit.run()]
            await stack.enter_async_context(run_in_background(background))
            spare_started_process()
            _log.info("serving", extra={"listen": address, "role": role, "deployment": process.bus.deployment})
            started()
            process.health.start_serving()
            ready(address)
            await stop.wait()
            _log.info("draining")
            process.health.drain()
            shutdown.start()
            if worker is not None:
                worker.stop_claiming()  # while RPCs drain, so that both share the time
    _log.info("stopped")


@asynccontextmanager
async def _operator_endpoint(process: Process, metrics_now: Callable[[], Awaitable[Collected]]) -> AsyncIterator[None]:
    from syncbeat_server.http.operator_endpoint import OperatorViews, serve_http  # aiohttp's server is large

    settings, health, keys = process.settings, process.health, b""

    def publish_keys() -> None:
        nonlocal keys
        # Every app's sessions are signed by the same keys.
        keys = public_jwks(session_rows(process.secrets.current, DEFAULT_APP, settings))

    publish_keys()
    process.secrets.on_change(publish_keys)
    views = OperatorViews(
        metrics_now=metrics_now,
        health=health.fresh_report,
        pool=pool_view(process.database),
        jwks=lambda: keys,
    )
    async with serve_http(settings.ops_listen, views, share_port=settings.share_port):
        yield


@asynccontextmanager
async def _metrics_of_group(process: Process) -> AsyncIterator[Callable[[], Awaitable[Collected]]]:
    """Yield what returns the metrics of this process, or of all that share its folder. Raises ConfigurationError."""
    registry, folder = process.metrics.registry, process.settings.metrics_dir
    if folder is None:

        async def own() -> Collected:
            return registry

        yield own
        return
    exchange = ProcessExchange(folder, registry)
    async with AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(exchange.offered())
        except OSError as error:
            raise ConfigurationError(
                f"SYNCBEAT_METRICS_DIR: {folder} cannot be used: {error.strerror or error}"
            ) from error
        yield exchange.merged
