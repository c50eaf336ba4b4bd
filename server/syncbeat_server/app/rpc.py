"""Wires the RPC server of a process: its services and its caches."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from syncbeat_server.app.authentication import build_authentication, session_rule, signing_keys
from syncbeat_server.app.change_notifier import ClusterNotifier, OwnEchoes, RpcCaches
from syncbeat_server.app.drain import drain_rpc
from syncbeat_server.app.events.ingest import wire_events
from syncbeat_server.app.load_pacing import wire_load_pacing
from syncbeat_server.app.operations.health import STORED, issuers_check
from syncbeat_server.app.operations.slo import count_calls
from syncbeat_server.app.operations.status import process_name, status_service
from syncbeat_server.app.process import Process, run_in_background
from syncbeat_server.app.ratelimit.call_limits import LimitFeature, running_call_limits
from syncbeat_server.app.sync import wire_sync
from syncbeat_server.app.tenants.app_secrets import AppSecrets
from syncbeat_server.app.tenants.live_credentials import LiveCredentials
from syncbeat_server.app.webhooks.door import running_webhooks
from syncbeat_server.audit.record import record_grant
from syncbeat_server.audit.service import AuditService
from syncbeat_server.auth.accounts.cluster_token_cache import ClusterTokenCache
from syncbeat_server.auth.sessions.refresh_rate_limit import RefreshRateLimit
from syncbeat_server.auth.sessions.service import SessionService
from syncbeat_server.directory.model import ChangeNotifier
from syncbeat_server.directory.service import DirectoryService
from syncbeat_server.events.identities.links import IdentityLinks
from syncbeat_server.events.user_lifecycle import UserLifecycle
from syncbeat_server.push.accept import cancel_waiting
from syncbeat_server.push.delivery.watch_deliveries import DeliveryWatches
from syncbeat_server.push.delivery.worker import DeliveryWorker
from syncbeat_server.push.service import PushService
from syncbeat_server.ratelimit.user_tiers import UserTiers
from syncbeat_server.runtime.health_monitor import HealthReport
from syncbeat_server.storage.idempotency_cache import IdempotencyCache
from syncbeat_server.sync.feed.writer import lock_scope
from syncbeat_server.sync.hints.view_cache import ViewCache

if TYPE_CHECKING:
    from syncbeat_server.rpc.server import RpcServer


@asynccontextmanager
async def rpc_caches(process: Process) -> AsyncIterator[RpcCaches]:
    """Create the authenticator and the caches of this process, and keep issuers' keys fresh for the block."""
    rules = process.rules
    apps, settings = process.apps, process.settings
    authentication = build_authentication(
        settings, apps.current, process.database, process.clock, rules.negative_cache_s
    )
    LiveCredentials(process.secrets, apps, authentication, process.hub.callers_changed)
    callers, keys = authentication.caches, authentication.keys
    tokens = ClusterTokenCache(callers, keys.stores, process.bus, process_name(), process.hub.callers_changed)
    process.metrics.auth.watch_token_cache(callers.tokens.stats)
    process.status.own.add_cache("tokens", callers.tokens.stats)
    if keys.current or settings.apps_file is not None:
        process.health.add(issuers_check(keys.failing))
    view_cache_size = settings.view_cache_size or settings.cached_devices
    views = ViewCache(process.clock, lambda: process.bus.listening, view_cache_size, rules.sync.view_max_staleness_s)
    process.metrics.sync.watch_view_cache(views.stats)
    process.status.own.add_cache("views", views.stats)
    try:
        async with run_in_background([tokens.run(), keys.run()]):
            yield RpcCaches(authentication.authenticator, callers, tokens, views, OwnEchoes(process.clock))
    finally:
        await keys.close()


@asynccontextmanager
async def running_rpc(process: Process, worker: DeliveryWorker | None, caches: RpcCaches) -> AsyncIterator[str]:
    """Serve RPCs for the block, yield the address, and drain at its end. Raises ConfigurationError for a listener."""
    async with running_call_limits(process) as limits, _serving(process, worker, caches, limits) as address:
        yield address


@asynccontextmanager
async def _serving(
    process: Process, worker: DeliveryWorker | None, caches: RpcCaches, limits: LimitFeature
) -> AsyncIterator[str]:
    # gRPC and protobuf are loaded only by processes that serve RPCs.
    from syncbeat_server.app.listeners import rpc_listeners
    from syncbeat_server.rpc.connection_limits import ConnectionAge, ServerRule
    from syncbeat_server.rpc.pipeline.handler_pipeline import HandlerPipeline
    from syncbeat_server.rpc.server import RpcServer
    from syncbeat_server.rpc.servicers.auth import AuthServicer
    from syncbeat_server.rpc.servicers.directory import DirectoryServicer
    from syncbeat_server.rpc.servicers.events import EventServicer
    from syncbeat_server.rpc.servicers.ops import OpsServicer
    from syncbeat_server.rpc.servicers.push import PushServicer
    from syncbeat_server.rpc.servicers.sync import SyncServicer

    settings, clock, database, hub = process.settings, process.clock, process.database, process.hub
    authenticator, templates = caches.authenticator, process.apps.templates
    pacer, admission = wire_load_pacing(process)
    notifier = ClusterNotifier(process, worker, caches)
    sync = wire_sync(process, caches, notifier, pacer)
    events = wire_events(process, sync.tuner, notifier, limits.policies.of)
    watches = DeliveryWatches(database, clock, hub.stream_age_s)
    directory = DirectoryService(database, cancel_waiting, lock_scope, notifier)
    sessions = _session_service(process, notifier)
    user_tiers = UserTiers(database, limits.policies.of, notifier.caller_changed, record_grant)
    pipeline = HandlerPipeline(
        authenticator, process.metrics.rpc, clock, admission, settings.trusted_proxies, process.worker_processes.run
    )
    pipeline.limits = limits.calls
    pipeline.tracer, pipeline.trace_callers = process.tracer, settings.trace_callers
    process.status.own.streams = lambda: (pipeline.response_streams.open, pipeline.response_streams.sent)
    process.metrics.rpc.open_streams.set_function(lambda: len(hub))
    push = await _push_service(process, notifier)
    status = status_service(process.status, process.slo, database, push, lambda: process.apps.current)
    count_calls(process.slo)
    servicers = {
        "SyncService": SyncServicer(
            sync.service, sync.streams, sync.firehose, sync.publisher, authenticator.recheck, templates
        ),
        "PushService": PushServicer(push, watches, templates, clock),
        "DirectoryService": DirectoryServicer(directory, UserLifecycle(database, notifier.caller_changed), user_tiers),
        "EventService": EventServicer(events.service, templates, process.apps.signed_sources, clock),
        "AuthService": AuthServicer(sessions, _identity_links(process, notifier, caches, sessions), caches.tokens),
        "OpsService": OpsServicer(status, process.slo.reporter, AuditService(database, lambda: process.apps.current)),
    }
    server = RpcServer(
        pipeline,
        servicers,
        reflection=settings.reflection,
        share_port=settings.share_port,
        age=ConnectionAge(settings.connection_age_s, hub.stream_age_s),
        rule=process.rules.server or ServerRule(),
    )
    async with run_in_background([*sync.tasks, events.retries, limits.quotas.run()]):
        port, *_ = await server.start(rpc_listeners(settings))
        try:
            with process.health.followed(partial(_tell_health, server, frozenset(servicers))):
                async with running_webhooks(process, events.ingest, limits.calls):
                    yield f"{settings.listen.rpartition(':')[0]}:{port}"
        finally:
            flushes = (("cursors", sync.cursors.flush), ("quota counts", limits.quotas.flush))
            await drain_rpc(process.shutdown, server, (hub, watches), flushes)


def _tell_health(server: RpcServer, services: frozenset[str], report: HealthReport) -> None:
    server.set_serving(services if report.serves(STORED) else frozenset(), report.ready)


async def _push_service(process: Process, notifier: ChangeNotifier) -> PushService:
    secrets = AppSecrets(process.database, process.apps)
    await secrets.read_all()
    answers = IdempotencyCache(process.bus, process.clock)
    return PushService(process.database, answers, secrets.read, notifier.deliveries_accepted)


def _identity_links(
    process: Process, notifier: ChangeNotifier, caches: RpcCaches, sessions: SessionService
) -> IdentityLinks:
    settings = process.settings
    limits = RefreshRateLimit(process.clock, settings.refreshes_per_minute, settings.wrong_refreshes_per_minute)
    changed = notifier.caller_changed
    return IdentityLinks(process.database, caches.authenticator, sessions.signer_of, process.clock, changed, limits)


def _session_service(process: Process, notifier: ChangeNotifier) -> SessionService:
    settings = process.settings
    limits = RefreshRateLimit(process.clock, settings.refreshes_per_minute, settings.wrong_refreshes_per_minute)
    rule = session_rule(settings)
    signing = signing_keys(settings, process.apps.current)
    service = SessionService(process.database, signing, rule, process.clock, notifier.caller_changed, limits)

    def adopt() -> None:
        service.adopt(signing_keys(process.secrets.current, process.apps.current))

    process.apps.on_change(adopt)
    process.secrets.on_change(adopt)
    return service
