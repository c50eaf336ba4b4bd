"""The delivery worker and the providers it sends through."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from syncbeat_server.app.process import Process, running
from syncbeat_server.clock import Clock
from syncbeat_server.errors import ConfigurationError
from syncbeat_server.ops.config import AppSettings
from syncbeat_server.push.policy import RetryRule
from syncbeat_server.push.providers import Provider
from syncbeat_server.push.providers.log import LogProvider
from syncbeat_server.push.worker import DeliveryWorker, WorkerRule


@asynccontextmanager
async def running_worker(process: Process) -> AsyncIterator[DeliveryWorker]:
    settings = process.settings
    async with AsyncExitStack() as stack:
        providers: dict[str, Provider] = {}
        for name, app in settings.all_apps().items():
            providers[name] = provider(app, settings.delivery_in_flight, process.clock)
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
        async with running([worker.run()]):
            try:
                yield worker
            finally:
                await worker.drain(settings.drain_s)


def provider(app: AppSettings, in_flight: int, clock: Clock) -> Provider:
    if app.fcm_credentials is None:
        return LogProvider()
    # firebase-admin is large: a process that pushes nothing to FCM does without it.
    from syncbeat_server.push.providers.fcm import AccessTokens, FcmProvider

    try:
        return FcmProvider(AccessTokens(app.fcm_credentials, clock), app.fcm_base_url, in_flight, clock)
    except (ValueError, OSError):
        raise ConfigurationError("SYNCBEAT_FCM_CREDENTIALS: not the JSON of a service account") from None
