"""The composition root: opens the stores, wires the features, serves until told to stop, drains, closes."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from syncbeat_server.auth.model import Principal, PrincipalKind
from syncbeat_server.auth.service import Authenticator
from syncbeat_server.auth.tokens import KeyRow, key_table, keys_of_jwks
from syncbeat_server.clock import Clock, SystemClock
from syncbeat_server.directory.presence import Presence, PresenceKeeper
from syncbeat_server.directory.service import DirectoryService
from syncbeat_server.errors import ConfigurationError, DependencyDown, SyncbeatError
from syncbeat_server.events.publish import Publisher
from syncbeat_server.ops.config import AppSettings, Role, Settings, TokenEntry
from syncbeat_server.ops.metrics import Metrics
from syncbeat_server.push.accept import cancel_waiting
from syncbeat_server.push.policy import RetryRule
from syncbeat_server.push.providers import Provider
from syncbeat_server.push.providers.log import LogProvider
from syncbeat_server.push.service import PushService
from syncbeat_server.push.worker import DeliveryWorker, WorkerRule
from syncbeat_server.storage.migrate import require_current_schema, require_restricted_login
from syncbeat_server.storage.postgres import Database, open_database
from syncbeat_server.storage.redis import RedisBus, open_redis
from syncbeat_server.sync.hub import Hub
from syncbeat_server.sync.service import FeedReader, SeenRecorder, SyncService
from syncbeat_server.sync.sweep import HeadSweep
from syncbeat_server.sync.watch import HintStreams

_log = logging.getLogger(__name__)

_CHANGES, _MEMBERS, _DELIVERIES = "syncbeat:changes", "syncbeat:members", "syncbeat:deliveries"
_SEPARATOR = "\x1f"
_MAX_TOLD_MEMBERS = 1_000
_CANCEL_AGAIN_S = 0.2


@dataclass(frozen=True)
class Stores:
    """Where the stores are."""

    database_url: str
    redis_url: str


@dataclass(frozen=True)
class _Process:
    """What every role of a process shares."""

    settings: Settings
    clock: Clock
    metrics: Metrics
    database: Database
    bus: RedisBus
    hub: Hub
    presence: Presence


async def serve(
    settings: Settings, stores: Stores, role: Role, stop: asyncio.Event, ready: Callable[[str], None]
) -> None:
    """Run one process in its role until `stop` is set, then drain it. `ready(address)` is called once it serves.

    Raises:
        ConfigurationError: a setting cannot be used (a key, an address).
        DependencyDown: the database cannot be reached at the start.
        MigrationNeeded: it is older than this code.
    """
    async with AsyncExitStack() as stack:
        process = await stack.enter_async_context(_opened(settings, stores))
        worker: DeliveryWorker | None = None
        if role is not Role.RPC:
            worker = await stack.enter_async_context(_running_worker(process))
        address = "worker"
        if role is not Role.WORKER:
            address = await stack.enter_async_context(_running_rpc(process, worker))
        await stack.enter_async_context(_running(_listening(process, worker)))
        if settings.ops_listen:
            await stack.enter_async_context(_ops_http(process, stop))
        # What is there now stays: the collector need not walk it again and again.
        gc.collect()
        gc.freeze()
        _log.info("serving", extra={"listen": address, "role": role})
        ready(address)
        await stop.wait()
        _log.info("draining")
    _log.info("stopped")


@asynccontextmanager
async def _opened(settings: Settings, stores: Stores) -> AsyncIterator[_Process]:
    clock = SystemClock()
    async with (
        open_database(stores.database_url, size=settings.database_pool_size, name="syncbeat") as database,
        open_redis(stores.redis_url, clock) as bus,
    ):
        async with database.connection() as conn:
            await require_restricted_login(conn)
            await require_current_schema(conn)
        async with _running([bus.run_publisher()]):
            yield _Process(settings, clock, Metrics(), database, bus, Hub(), Presence(bus))


@asynccontextmanager
async def _running_rpc(process: _Process, worker: DeliveryWorker | None) -> AsyncIterator[str]:
    # gRPC and protobuf are loaded only by processes that serve RPCs.
    from syncbeat_server.rpc.directory import DirectoryServicer
    from syncbeat_server.rpc.interceptors import Interceptors
    from syncbeat_server.rpc.push import PushServicer
    from syncbeat_server.rpc.server import RpcServer
    from syncbeat_server.rpc.sync import SyncServicer

    settings, clock, database, hub = process.settings, process.clock, process.database, process.hub
    tell = _Tellers(process, worker)
    reader, seen = FeedReader(database), SeenRecorder(database, clock)
    keeper = PresenceKeeper(process.presence, lambda: [_device(key) for key in hub.live_devices()], clock)
    streams = HintStreams(hub, reader, seen, clock, lambda key: keeper.moved(_device(key)))
    directory = DirectoryService(database, cancel_waiting, tell.members_changed)
    server = RpcServer(
        Interceptors(_authenticator(settings, clock).authenticate, process.metrics, clock),
        {
            "SyncService": SyncServicer(
                SyncService(database, reader, seen, clock),
                streams,
                Publisher(database, clock, tell.scope_changed, tell.deliveries_accepted),
            ),
            "PushService": PushServicer(PushService(database, tell.deliveries_accepted), clock),
            "DirectoryService": DirectoryServicer(directory),
        },
        reflection=settings.reflection,
        share_port=settings.share_port,
    )
    sweep = HeadSweep(database, hub, clock, lambda: process.bus.listening)
    async with _running([seen.run(), keeper.run(), keeper.run_refresh(), sweep.run()]):
        port = await server.start(settings.listen)
        await server.ready()
        try:
            yield f"{settings.listen.rpartition(':')[0]}:{port}"
        finally:
            # Streams are asked to end first, so that each says where it was; then the calls under way may finish.
            await server.retire()
            hub.drain()
            await server.stop(settings.drain_s)
            await seen.flush()


@asynccontextmanager
async def _running_worker(process: _Process) -> AsyncIterator[DeliveryWorker]:
    settings = process.settings
    async with AsyncExitStack() as stack:
        providers: dict[str, Provider] = {}
        for name, app in settings.all_apps().items():
            providers[name] = _provider(app, settings.delivery_in_flight, process.clock)
            stack.push_async_callback(providers[name].close)
        worker = DeliveryWorker(
            process.database,
            providers,
            process.presence.live,
            WorkerRule(
                lease_s=settings.delivery_lease_s,
                poll_s=settings.delivery_poll_s,
                in_flight=settings.delivery_in_flight,
                retry=RetryRule(first_s=settings.delivery_retry_s, grace_s=settings.stream_grace_s),
            ),
            process.clock,
            process.metrics.attempt_ended,
        )
        async with _running([worker.run()]):
            try:
                yield worker
            finally:
                await worker.drain(settings.drain_s)


def _provider(app: AppSettings, in_flight: int, clock: Clock) -> Provider:
    if app.fcm_credentials is None:
        return LogProvider()
    # firebase-admin is large: a process that pushes nothing to FCM does without it.
    from syncbeat_server.push.providers.fcm import AccessTokens, FcmProvider

    try:
        return FcmProvider(AccessTokens(app.fcm_credentials, clock), app.fcm_base_url, in_flight, clock)
    except (ValueError, OSError):
        raise ConfigurationError("SYNCBEAT_FCM_CREDENTIALS: not the JSON of a service account") from None


def _listening(process: _Process, worker: DeliveryWorker | None) -> list[Coroutine[Any, Any, None]]:
    """What hears the wake-ups of the other processes."""

    def heard(topic: str, message: str) -> None:
        if topic == _DELIVERIES:
            if worker is not None:
                worker.wake()
            return
        app_id, _, name = message.partition(_SEPARATOR)
        if topic == _CHANGES:
            process.hub.scope_changed(app_id, name)
        else:
            process.hub.members_changed(app_id, name)

    def resumed() -> None:
        process.hub.look_everywhere()
        if worker is not None:
            worker.wake()

    return [process.bus.run_listener([_CHANGES, _MEMBERS, _DELIVERIES], heard, resumed)]


class _Tellers:
    """What is told after a commit: first to this process, which does not wait for Redis, then to the others."""

    def __init__(self, process: _Process, worker: DeliveryWorker | None) -> None:
        self._process = process
        self._worker = worker

    def scope_changed(self, app_id: str, scope: str) -> None:
        self._process.hub.scope_changed(app_id, scope)
        self._process.bus.publish(_CHANGES, f"{app_id}{_SEPARATOR}{scope}")

    def members_changed(self, app_id: str, user_ids: Sequence[str]) -> None:
        for user_id in user_ids[:_MAX_TOLD_MEMBERS]:
            self._process.hub.members_changed(app_id, user_id)
            self._process.bus.publish(_MEMBERS, f"{app_id}{_SEPARATOR}{user_id}")

    def deliveries_accepted(self) -> None:
        if self._worker is not None:
            self._worker.wake()
        self._process.bus.publish(_DELIVERIES, "")


@asynccontextmanager
async def _ops_http(process: _Process, stop: asyncio.Event) -> AsyncIterator[None]:
    from syncbeat_server.ops.endpoint import serving_http  # aiohttp's server is large, and this is optional

    async def ready() -> bool:
        try:
            async with process.database.connection() as conn:
                await conn.fetchval("SELECT 1")
        except SyncbeatError:
            return False
        return not stop.is_set()

    settings = process.settings
    async with serving_http(settings.ops_listen, process.metrics.registry, ready, share_port=settings.share_port):
        yield


@asynccontextmanager
async def _running(work: Sequence[Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
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


def _authenticator(settings: Settings, clock: Clock) -> Authenticator:
    rows = [row for name, app in settings.all_apps().items() for row in key_rows(name, app)]
    tokens = {
        entry.digest: _principal(entry, kind, frozenset(settings.all_apps()))
        for kind, entries in (
            (PrincipalKind.SERVICE, settings.service_tokens),
            (PrincipalKind.ADMIN, settings.admin_tokens),
        )
        for entry in entries
    }
    return Authenticator(key_table(rows), tokens, clock)


def _principal(entry: TokenEntry, kind: PrincipalKind, apps: frozenset[str]) -> Principal:
    unknown = sorted((entry.apps or frozenset()) - apps)
    if unknown:
        raise ConfigurationError(
            f"SYNCBEAT_{kind.name}_TOKENS: {entry.name} is for app {unknown[0]!r}, which is not configured"
        )
    return Principal(kind, entry.name, methods=entry.methods, apps=apps if entry.apps is None else entry.apps)


def key_rows(name: str, app: AppSettings) -> list[KeyRow]:
    """The keys that sign the access tokens of one app's users.

    Raises:
        ConfigurationError: its JWKS file cannot be used.
    """
    rows = [
        KeyRow(name, app.jwt_issuer, app.jwt_audience, kid, "HS256", secret.get_secret_value())
        for kid, secret in app.jwt_secrets.items()
    ]
    if len(rows) == 1:
        # A single secret also checks tokens without a kid, as Supabase's legacy secret signs them.
        only = rows[0]
        rows.append(KeyRow(only.app_id, only.issuer, only.audience, "", only.algorithm, only.key))
    if app.jwks_file is not None:
        try:
            document = app.jwks_file.read_bytes()
            rows += keys_of_jwks(document, app_id=name, issuer=app.jwt_issuer, audience=app.jwt_audience)
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"SYNCBEAT_JWKS_FILE: {error}") from None
    return rows


def _device(key: Any) -> tuple[str, str, str]:
    return (key.app_id, key.user_id, key.device_id)


async def faults(settings: Settings, stores: Stores | None) -> list[str]:
    """What would keep this configuration from serving, or make it unsafe; empty when it is good."""
    found = []
    for name, app in settings.all_apps().items():
        try:
            if not key_rows(name, app):
                found.append(f"app {name!r}: no JWT_SECRETS and no JWKS_FILE, so no user can call")
            _provider(app, 1, SystemClock())
        except ConfigurationError as error:
            found.append(error.message)
    if stores is not None:
        found += await _store_faults(stores)
    return found


async def _store_faults(stores: Stores) -> list[str]:
    try:
        async with (
            open_database(stores.database_url, size=1, name="syncbeat-check") as database,
            database.connection() as conn,
        ):
            await require_restricted_login(conn)
            await require_current_schema(conn)
    except SyncbeatError as error:
        return [error.message]
    async with open_redis(stores.redis_url, SystemClock()) as bus:
        try:
            await bus.present(["syncbeat:check"])
        except DependencyDown as error:
            return [error.message]
    return []
