"""The delivery worker and the channels it sends through."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from syncbeat_server.app.apps import stamp_of
from syncbeat_server.app.learning import nightly_fit
from syncbeat_server.app.process import Process, running
from syncbeat_server.auth.erase import OLD_ROWS as OLD_SESSIONS
from syncbeat_server.clock import Clock
from syncbeat_server.errors import ConfigurationError
from syncbeat_server.ops.config import AppSettings, Settings
from syncbeat_server.ops.setting_types import check_base_url
from syncbeat_server.push.channel import Channel, app_secret
from syncbeat_server.push.gate import Gate
from syncbeat_server.push.policy import RetryRule
from syncbeat_server.push.providers import Provider
from syncbeat_server.push.providers.log import LogProvider
from syncbeat_server.push.resend import ResendRule
from syncbeat_server.push.upkeep import QueueFigures, old_rows
from syncbeat_server.push.worker import DeliveryWorker, WorkerHooks, WorkerRule
from syncbeat_server.resilience.breaker import BreakerRule, BreakerState
from syncbeat_server.storage.allowance import Allowance, Rate
from syncbeat_server.storage.notices import listen
from syncbeat_server.storage.retention import Retention
from syncbeat_server.sync.pruning import OLD_ROWS as OLD_SYNC_ROWS
from syncbeat_server.sync.pruning import TombstonePruning

_log = logging.getLogger(__name__)

_BURST_S = 0.1
_LEAST_BURST = 200.0
_RETIRED = 8  # providers that are kept open for the attempts that are still under way in them


@asynccontextmanager
async def running_worker(process: Process) -> AsyncIterator[DeliveryWorker]:
    settings = process.settings
    channels, session_url = _Channels(process), settings.database_session_url
    await channels.open()
    try:
        worker = DeliveryWorker(
            process.database,
            channels.by_app,
            process.presence.live,
            Allowance(process.bus, _rate(settings), process.clock),
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
            process.clock,
            WorkerHooks(
                process.metrics.attempt_ended,
                process.metrics.outcomes_voided,
                process.metrics.removals_braked,
                channels.audited,
                process.metrics.woken,
                process.metrics.wake_ups_missed,
            ),
        )
        listening = [] if session_url is None else [listen(session_url.get_secret_value(), worker.wake, process.clock)]
        pruning = TombstonePruning(process.database, settings.keep_tombstones_days, process.clock)
        retention = retention_of(process)
        chores = [channels.run(), nightly_fit(process).run(), pruning.run(), retention.run(), *listening]
        async with running([worker.run(), *chores]):
            try:
                yield worker
            finally:
                retention.stop()
                await worker.drain(process.ending.left_s())
    finally:
        await channels.close()


def retention_of(process: Process) -> Retention:
    """What deletes the old rows of every feature."""
    kinds = [*old_rows(process.settings.keep_deliveries_days), *OLD_SESSIONS, *OLD_SYNC_ROWS]
    return Retention(process.database, kinds, process.clock, process.metrics.rows_forgotten)


class _Channels:
    """Makes the apps' channels, and makes those anew whose configuration has changed."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._changed = asyncio.Event()
        self._made_of: dict[str, object] = {}
        self._retired: list[Provider] = []
        self.by_app: dict[str, Channel] = {}

    async def open(self) -> None:
        """Raises ConfigurationError: a provider's configuration cannot be used."""
        for app_id, app in self._process.apps.current.items():
            await self._make(app_id, app)
        self._process.apps.on_change(self._changed.set)

    async def run(self) -> None:
        """Follow the apps' configuration, for ever."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            for app_id, app in self._process.apps.current.items():
                try:
                    await self._make(app_id, app)
                except ConfigurationError as error:
                    _log.error("an app keeps its provider", extra={"app_id": app_id, "fault": error.message})
            for app_id in self.by_app.keys() - self._process.apps.current.keys():
                self._retire(self.by_app.pop(app_id))
            while len(self._retired) > _RETIRED:
                await self._retired.pop(0).close()

    async def close(self) -> None:
        """Close every provider."""
        for channel in self.by_app.values():
            self._retire(channel)
        for provider in self._retired:
            await provider.close()

    def audited(self, figures: QueueFigures) -> None:
        """Show the queue's figures."""
        metrics = self._process.metrics
        metrics.queue_counted(figures.waiting, figures.unaccounted)
        metrics.breakers({app_id: c.gate.breaker is not BreakerState.CLOSED for app_id, c in self.by_app.items()})

    async def _make(self, app_id: str, app: AppSettings) -> None:
        account = app.fcm_credentials and stamp_of(app.fcm_credentials)
        made_of = (
            app.fcm_base_url,
            app.webhook_url,
            app.webhook_token,
            account,
        )
        known = self.by_app.get(app_id)
        if known is None or made_of != self._made_of[app_id]:
            settings, clock = self._process.settings, self._process.clock
            first, fallback, project = providers(app_id, app, settings, clock)
            # Deployments that send through one project share its quota: FCM counts what they send together.
            rate_key = project or f"{self._process.bus.deployment}:{app_id}"
            if known is None:
                secret = await app_secret(self._process.database, app_id)
                gate = Gate(settings.delivery_in_flight, BreakerRule(open_s=settings.delivery_breaker_s), clock)
                known = self.by_app[app_id] = Channel(first, gate, rate_key, secret, fallback)
            else:
                self._retire(known)
                known.provider, known.fallback, known.rate_key = first, fallback, rate_key
            self._made_of[app_id] = made_of
        known.max_per_day = app.max_per_day
        known.templates = self._process.apps.templates(app_id)

    def _retire(self, channel: Channel) -> None:
        # Not closed before the end: attempts may be under way.
        self._retired += [channel.provider] if channel.fallback is None else [channel.provider, channel.fallback]


def providers(app_id: str, app: AppSettings, settings: Settings, clock: Clock) -> tuple[Provider, Provider | None, str]:
    """An app's provider, the one for when that cannot be reached, and the project whose rate it shares, or "".

    Raises:
        ConfigurationError: it cannot be used.
    """
    webhook = None
    if app.webhook_url:
        from syncbeat_server.push.providers.webhook import WebhookProvider

        token = "" if app.webhook_token is None else app.webhook_token.get_secret_value()
        webhook = WebhookProvider(app.webhook_url, token, settings.delivery_in_flight, settings.delivery_timeout_s)
    if app.fcm_credentials is None:
        return webhook or LogProvider(), None, ""
    # firebase-admin is large: a process that pushes nothing to FCM does without it.
    from syncbeat_server.push.providers.fcm import AccessTokens, FcmProvider

    try:
        tokens = AccessTokens(app.fcm_credentials, clock)
        check_base_url("the token_uri of FCM_CREDENTIALS", tokens.token_uri)
    except (ValueError, OSError) as error:
        fault = str(error) if "token_uri" in str(error) else "not the JSON of a service account"
        raise ConfigurationError(f"SYNCBEAT_FCM_CREDENTIALS: {fault}") from None
    fcm = FcmProvider(
        tokens, app.fcm_base_url, settings.delivery_in_flight, clock, timeout_s=settings.delivery_timeout_s
    )
    return fcm, webhook, f"fcm:{tokens.project_id}"


def _rate(settings: Settings) -> Rate:
    per_s = settings.push_per_minute / 60
    return Rate(per_s, max(_LEAST_BURST, per_s * _BURST_S), settings.push_ramp_s)
