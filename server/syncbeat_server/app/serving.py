"""Runs one process: opens the stores, wires the features, serves until told to stop, drains, closes."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from syncbeat_server.app.authentication import callers, session_rows, session_rule
from syncbeat_server.app.change_notifier import Front, Tellers, listening
from syncbeat_server.app.load_pacing import pacing
from syncbeat_server.app.process import Process, Stores, opened, running
from syncbeat_server.app.push import running_worker
from syncbeat_server.app.sync import syncing
from syncbeat_server.auth.accounts.cluster_token_cache import ClusterTokenCache
from syncbeat_server.auth.sessions.refresh_rate_limit import RefreshRateLimit
from syncbeat_server.auth.sessions.refresh_tokens import RefreshKeys
from syncbeat_server.auth.sessions.service import SessionService
from syncbeat_server.auth.sessions.signing import SigningKeys
from syncbeat_server.auth.tokens.keys import public_jwks
from syncbeat_server.defaults import DEFAULT_APP
from syncbeat_server.directory.service import DirectoryService
from syncbeat_server.errors import SyncbeatError
from syncbeat_server.events.user_lifecycle import UserLifecycle
from syncbeat_server.ops.settings.server import Role, Settings
from syncbeat_server.ops.shutdown_budget import ShutdownBudget, cancelled_on_stop
from syncbeat_server.push.accept import cancel_waiting
from syncbeat_server.push.delivery.channel import app_secret
from syncbeat_server.push.delivery.watch import DeliveryWatches
from syncbeat_server.push.delivery.worker import DeliveryWorker
from syncbeat_server.push.service import PushService
from syncbeat_server.storage.idempotency_cache import IdempotencyCache
from syncbeat_server.sync.hints.cursor_recorder import CursorRecorder
from syncbeat_server.sync.hints.view_cache import ViewCache

_log = logging.getLogger(__name__)

_FLUSH_S = 0.4  # of the second and a half that is left after draining


async def serve(
    settings: Settings, stores: Stores, role: Role, stop: asyncio.Event, ready: Callable[[str], None]
) -> None:
    """Run one process in its role until `stop` is set, then drain it. `ready(address)` is called once it serves.

    Raises:
        ConfigurationError: a setting cannot be used (a key, an address).
        DependencyDown: the database cannot be reached at the start.
        MigrationNeeded: it is older than this code.
    """
    ending = ShutdownBudget(settings.drain_s)
    with cancelled_on_stop(stop) as started:
        async with AsyncExitStack() as stack:
            process = await stack.enter_async_context(opened(settings, stores, ending))
            worker: DeliveryWorker | None = None
            if role is not Role.RPC:
                worker = await stack.enter_async_context(running_worker(process))
            address, front = "worker", None
            if role is not Role.WORKER:
                front = await stack.enter_async_context(_front(process))
                address = await stack.enter_async_context(_running_rpc(process, worker, front))
            await stack.enter_async_context(running([listening(process, worker, front)]))
            if settings.ops_listen:
                await stack.enter_async_context(_ops_http(process, stop))
            # What is there now stays: the collector need not walk it again and again.
            gc.collect()
            gc.freeze()
            _log.info("serving", extra={"listen": address, "role": role, "deployment": process.bus.deployment})
            started()
            ready(address)
            await stop.wait()
            _log.info("draining")
            ending.start()
            if worker is not None:
                worker.stop_claiming()  # while RPCs drain, so that both share the time
    _log.info("stopped")


@asynccontextmanager
async def _front(process: Process) -> AsyncIterator[Front]:
    at_door = callers(process.settings, process.database, process.clock)
    name = f"{socket.gethostname()}:{os.getpid()}"
    caches = ClusterTokenCache(at_door.caches, at_door.jwks, process.bus, name, process.hub.callers_changed)
    process.metrics.auth.watch_token_cache(at_door.caches.tokens.stats)
    size = process.settings.view_cache_size
    views = ViewCache(process.clock, lambda: process.bus.listening, size)
    try:
        async with running([caches.run(), *(store.run() for store in at_door.jwks)]):
            yield Front(at_door.door, at_door.caches, caches, views)
    finally:
        await at_door.close()


@asynccontextmanager
async def _running_rpc(process: Process, worker: DeliveryWorker | None, front: Front) -> AsyncIterator[str]:
    # gRPC and protobuf are loaded only by processes that serve RPCs.
    from syncbeat_server.app.listeners import listeners
    from syncbeat_server.rpc.handler_pipeline import HandlerPipeline
    from syncbeat_server.rpc.server import ConnectionAge, RpcServer
    from syncbeat_server.rpc.servicers.auth import AuthServicer
    from syncbeat_server.rpc.servicers.directory import DirectoryServicer
    from syncbeat_server.rpc.servicers.push import PushServicer
    from syncbeat_server.rpc.servicers.sync import SyncServicer

    settings, clock, database = process.settings, process.clock, process.database
    pacer, admission = pacing(process)
    tell = Tellers(process, worker, front)
    sync = syncing(process, front, tell, pacer)
    watches = DeliveryWatches(database, clock, process.hub.stream_age_s)
    directory = DirectoryService(database, cancel_waiting, tell)
    templates = process.apps.templates
    server = RpcServer(
        HandlerPipeline(
            front.door, process.metrics.rpc, clock, admission, settings.trusted_proxies, process.worker_processes.run
        ),
        {
            "SyncService": SyncServicer(
                sync.service, sync.streams, sync.firehose, sync.publisher, front.door.recheck, templates
            ),
            "PushService": PushServicer(await _push(process, tell), watches, templates, clock),
            "DirectoryService": DirectoryServicer(directory, UserLifecycle(database, tell.caller_changed)),
            "AuthService": AuthServicer(_sessions(process, tell), front.caches),
        },
        reflection=settings.reflection,
        share_port=settings.share_port,
        age=ConnectionAge(settings.connection_age_s, process.hub.stream_age_s),
    )
    async with running(sync.tasks):
        port, *_ = await server.start(listeners(settings))
        server.set_serving()
        try:
            yield f"{settings.listen.rpartition(':')[0]}:{port}"
        finally:
            # Streams are asked to end first, so that each says where it was; then the calls under way may finish.
            server.drain()
            process.hub.drain()
            watches.drain()
            await server.stop(process.ending.remaining_s())
            await _flushed(process, sync.cursors)


async def _flushed(process: Process, cursors: CursorRecorder) -> None:
    try:
        if await process.ending.wait_for(cursors.flush(), _FLUSH_S):
            return
    except SyncbeatError as error:
        _log.warning("cursors not recorded", extra={"reason": error.reason})
    else:
        _log.warning("cursors not recorded in time")


@asynccontextmanager
async def _ops_http(process: Process, stop: asyncio.Event) -> AsyncIterator[None]:
    from syncbeat_server.http.operator_endpoint import serving_http  # aiohttp's server is large, and this is optional

    async def ready() -> bool:
        try:
            async with process.database.connection() as conn:
                await conn.fetchval("SELECT 1")
        except SyncbeatError:
            return False
        return not stop.is_set()

    settings = process.settings
    # Every app's sessions are signed by the same keys.
    jwks = public_jwks(session_rows(settings, DEFAULT_APP, settings))
    async with serving_http(settings.ops_listen, process.metrics.registry, ready, jwks, share_port=settings.share_port):
        yield


async def _push(process: Process, tell: Tellers) -> PushService:
    secrets = {app_id: await app_secret(process.database, app_id) for app_id in process.settings.all_apps()}
    return PushService(
        process.database, IdempotencyCache(process.bus, process.clock), secrets, tell.deliveries_accepted
    )


def _sessions(process: Process, tell: Tellers) -> SessionService:
    settings = process.settings
    rows = {name: session_rows(settings, name, app) for name, app in settings.all_apps().items()}
    signing = None
    if settings.session_keys is not None:
        secrets = {kid: secret.get_secret_value().encode() for kid, secret in settings.session_secrets.items()}
        signing = SigningKeys({name: keys[0] for name, keys in rows.items()}, RefreshKeys(secrets))
    limits = RefreshRateLimit(process.clock, settings.refreshes_per_minute, settings.wrong_refreshes_per_minute)
    rule = session_rule(settings)
    return SessionService(process.database, signing, rule, process.clock, tell.caller_changed, limits)
