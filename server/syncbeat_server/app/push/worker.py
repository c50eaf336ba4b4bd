"""Wires the delivery worker and the tasks that run beside it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from syncbeat_server.app.operations.health import providers_check
from syncbeat_server.app.process import Process, run_in_background
from syncbeat_server.app.push.channels import Channels
from syncbeat_server.app.tuning import nightly_fit
from syncbeat_server.audit.retention import old_rows as old_audit_entries
from syncbeat_server.auth.sessions.expired_sessions import OLD_ROWS as OLD_SESSIONS
from syncbeat_server.events.retention import old_rows as old_events
from syncbeat_server.ops.settings.server import Settings
from syncbeat_server.push.delivery.dependencies import DeliveryDependencies
from syncbeat_server.push.delivery.maintenance import old_rows
from syncbeat_server.push.delivery.worker import DeliveryWorker, WorkerRule
from syncbeat_server.push.policy.resend import ResendRule
from syncbeat_server.push.policy.retry import RetryRule
from syncbeat_server.ratelimit.retention import OLD_ROWS as OLD_QUOTA_COUNTS
from syncbeat_server.resilience.breaker import BreakerRule
from syncbeat_server.resilience.breaker_registry import BreakerRegistry
from syncbeat_server.status.retention import OLD_ROWS as OLD_PROCESS_ROWS
from syncbeat_server.storage.postgres.pg_notify import listen
from syncbeat_server.storage.redis.breaker_states import RedisBreakerStates
from syncbeat_server.storage.redis.token_bucket import Rate, TokenBucket
from syncbeat_server.storage.retention import Retention
from syncbeat_server.sync.feed.tombstone_pruning import OLD_ROWS as OLD_SYNC_ROWS
from syncbeat_server.sync.feed.tombstone_pruning import TombstonePruner

_BURST_S = 0.1
_LEAST_BURST = 200.0


@asynccontextmanager
async def running_worker(process: Process) -> AsyncIterator[DeliveryWorker]:
    """Run a delivery worker, and drain it at the end. Raises ConfigurationError for an unusable provider."""
    settings = process.settings
    breakers = BreakerRegistry(
        BreakerRule(open_s=settings.delivery_breaker_s),
        process.clock,
        RedisBreakerStates(process.bus),
        process.metrics.resilience,
    )
    channels, session_url = Channels(process, breakers), settings.database_session_url
    await channels.open()
    process.health.add(providers_check(channels.open_breakers))
    process.status.own.add_breakers(breakers.all)
    await breakers.sync()  # what others have found out about providers is known before anything is claimed
    try:
        worker = DeliveryWorker(
            DeliveryDependencies(
                process.database,
                channels.by_app,
                process.presence.live,
                TokenBucket(process.bus, _rate(settings), process.clock),
                process.clock,
                process.metrics.push,
                process.tracer,
            ),
            WorkerRule(
                lease_s=settings.delivery_lease_s,
                poll_s=settings.delivery_poll_s,
                retry=RetryRule(
                    first_s=settings.delivery_retry_s,
                    grace_s=settings.stream_grace_s,
                    give_up_s=settings.delivery_give_up_s,
                    resend=ResendRule(settings.resend_s),
                ),
            ),
        )
        listening = [] if session_url is None else [listen(session_url.get_secret_value(), worker.wake, process.clock)]
        keep_days, every_s = settings.keep_tombstones_days, process.rules.sync.prune_every_s
        pruning = TombstonePruner(process.database, keep_days, process.clock, every_s)
        retention = retention_of(process)
        background = [channels.run(), breakers.run(), nightly_fit(process).run(), pruning.run(), retention.run()]
        async with run_in_background([worker.run(), *background, *listening]):
            try:
                yield worker
            finally:
                retention.stop()
                await worker.drain(process.shutdown.remaining_s())
    finally:
        await channels.close()


def retention_of(process: Process) -> Retention:
    """Return the job that deletes the old rows of every feature."""
    settings = process.settings
    kinds = [
        *old_rows(settings.keep_deliveries_days),
        *old_events(settings.keep_events_days),
        *old_audit_entries(settings.keep_audit_days),
        *(*OLD_SESSIONS, *OLD_SYNC_ROWS, *OLD_QUOTA_COUNTS, *OLD_PROCESS_ROWS),
    ]
    return Retention(process.database, kinds, process.clock, process.metrics.storage.rows_deleted)


def _rate(settings: Settings) -> Rate:
    per_s = settings.push_per_minute / 60
    return Rate(per_s, max(_LEAST_BURST, per_s * _BURST_S), settings.push_ramp_s)
