"""Wires the delivery worker, and makes the channel of each app from its configuration."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from syncbeat_server.app.app_configuration import CredentialsFile
from syncbeat_server.app.process import Process, run_in_background
from syncbeat_server.app.tuning import nightly_fit
from syncbeat_server.auth.erase import OLD_ROWS as OLD_SESSIONS
from syncbeat_server.clock import Clock
from syncbeat_server.errors import ConfigurationError, SyncbeatError
from syncbeat_server.ops.fault_log import FaultLog
from syncbeat_server.ops.settings.app import AppSettings
from syncbeat_server.ops.settings.server import Settings
from syncbeat_server.ops.settings.types import check_base_url
from syncbeat_server.push.delivery.channel import Channel, app_secret
from syncbeat_server.push.delivery.dependencies import DeliveryDependencies
from syncbeat_server.push.delivery.flow_control import Gate
from syncbeat_server.push.delivery.maintenance import old_rows, warn_of_unfit_templates
from syncbeat_server.push.delivery.worker import DeliveryWorker, WorkerRule
from syncbeat_server.push.policy.resend import ResendRule
from syncbeat_server.push.policy.retry import RetryRule
from syncbeat_server.push.providers import HttpRule, Provider
from syncbeat_server.push.providers.log import LogProvider
from syncbeat_server.push.providers.proxies import NoProxy
from syncbeat_server.resilience.breaker import BreakerRule
from syncbeat_server.storage.postgres.pg_notify import listen
from syncbeat_server.storage.redis.token_bucket import Rate, TokenBucket
from syncbeat_server.storage.retention import Retention
from syncbeat_server.sync.feed.prune import OLD_ROWS as OLD_SYNC_ROWS
from syncbeat_server.sync.feed.prune import TombstonePruner

if TYPE_CHECKING:
    from syncbeat_server.push.providers.fcm import AccessTokens

_log = logging.getLogger(__name__)

_RETRY_S = 2.0  # as often as files are looked at
_BURST_S = 0.1
_LEAST_BURST = 200.0
_MAX_RETIRED = 8  # replaced providers kept open, for attempts that are still under way in them


@asynccontextmanager
async def running_worker(process: Process) -> AsyncIterator[DeliveryWorker]:
    """Run a delivery worker, and drain it at the end. Raises ConfigurationError for an unusable provider."""
    settings = process.settings
    channels, session_url = _Channels(process), settings.database_session_url
    await channels.open()
    try:
        worker = DeliveryWorker(
            DeliveryDependencies(
                process.database,
                channels.by_app,
                process.presence.live,
                TokenBucket(process.bus, _rate(settings), process.clock),
                process.clock,
                process.metrics.push,
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
        pruning = TombstonePruner(process.database, settings.keep_tombstones_days, process.clock)
        retention = retention_of(process)
        background = [channels.run(), nightly_fit(process).run(), pruning.run(), retention.run(), *listening]
        async with run_in_background([worker.run(), *background]):
            try:
                yield worker
            finally:
                retention.stop()
                await worker.drain(process.shutdown.remaining_s())
    finally:
        await channels.close()


def retention_of(process: Process) -> Retention:
    """Return the job that deletes the old rows of every feature."""
    kinds = [*old_rows(process.settings.keep_deliveries_days), *OLD_SESSIONS, *OLD_SYNC_ROWS]
    return Retention(process.database, kinds, process.clock, process.metrics.storage.rows_deleted)


class _Channels:
    """Makes the channel of each app, and remakes the provider of those whose configuration has changed."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._changed = asyncio.Event()
        self._made_of: dict[str, object] = {}
        self._troubles: dict[str, FaultLog] = {}
        self._retired: list[Provider] = []
        self.by_app: dict[str, Channel] = {}

    async def open(self) -> None:
        """Make the channels of all apps. Raises ConfigurationError: a provider's configuration cannot be used."""
        for app_id, app in self._process.apps.current.items():
            await self._make(app_id, app)
        self._process.apps.on_change(self._changed.set)

    async def run(self) -> None:
        """Apply changes of the apps' configuration, for ever."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            while not await self._apply_changes():
                await self._process.clock.sleep(_RETRY_S)

    async def _apply_changes(self) -> bool:
        """Remake the channels that changed. Returns False if one could not be remade: it stays as it is."""
        good = True
        apps = self._process.apps.current
        for app_id, app in apps.items():
            trouble = self._troubles.setdefault(
                app_id,
                FaultLog(_log, "an app keeps its provider", "an app's provider can be made again", app_id=app_id),
            )
            try:
                await self._make(app_id, app)
                trouble.resolve()
            except Exception as error:  # noqa: BLE001  # the configuration of one app must not end the deliveries of all
                trouble.report(error.message if isinstance(error, SyncbeatError) else type(error).__name__)
                good = False
        for app_id in self.by_app.keys() - apps.keys():
            self._retire(self.by_app.pop(app_id))
        for app_id in self._troubles.keys() - apps.keys():
            del self._troubles[app_id]
        while len(self._retired) > _MAX_RETIRED:
            try:
                await self._retired.pop(0).close()
            except Exception:  # noqa: BLE001  # its app has another one by now
                _log.exception("a provider could not be closed")
        return good

    async def close(self) -> None:
        """Close every provider."""
        for channel in self.by_app.values():
            self._retire(channel)
        for provider in self._retired:
            await provider.close()

    async def _make(self, app_id: str, app: AppSettings) -> None:
        known = self.by_app.get(app_id)
        if known is not None:
            known.max_per_day = app.max_per_day
            before, known.templates = known.templates, self._process.apps.templates(app_id)
            if known.templates != before:
                await warn_of_unfit_templates(self._process.database, app_id, known.templates)
        path = app.fcm_credentials
        file = None if path is None else await asyncio.to_thread(self._process.apps.read_credentials, path)
        account = None if file is None else _content(file)
        made_of = (app.fcm_base_url, app.webhook_url, app.webhook_token, app.webhook_private, file)
        if known is not None and made_of == self._made_of[app_id]:
            return
        settings, clock = self._process.settings, self._process.clock
        secret = await app_secret(self._process.database, app_id) if known is None else known.ack_secret
        first, fallback, project = providers(app_id, app, settings, clock, account)
        # Deployments that send through one project share its quota: FCM counts what they send together.
        rate_key = project or f"{self._process.bus.deployment}:{app_id}"
        if known is None:
            rule = BreakerRule(open_s=settings.delivery_breaker_s)
            gate = Gate(settings.delivery_in_flight, settings.push_per_minute / 60, rule, clock)
            known = self.by_app[app_id] = Channel(first, gate, rate_key, secret, fallback)
            known.max_per_day = app.max_per_day
            known.templates = self._process.apps.templates(app_id)
        else:
            self._retire(known)
            known.provider, known.fallback, known.rate_key = first, fallback, rate_key
        self._made_of[app_id] = made_of

    def _retire(self, channel: Channel) -> None:
        # Closed later: attempts may be under way.
        self._retired += [channel.provider] if channel.fallback is None else [channel.provider, channel.fallback]


def _content(file: CredentialsFile) -> bytes:
    if isinstance(file.held, str):
        raise ConfigurationError(f"SYNCBEAT_FCM_CREDENTIALS: {file.held}")
    return file.held


def providers(
    app_id: str, app: AppSettings, settings: Settings, clock: Clock, account: bytes | None = None
) -> tuple[Provider, Provider | None, str]:
    """Return an app's provider, its fallback, and the project whose rate it shares, or "".

    `account`: content of the app's FCM credentials; if None, the file is read.

    Raises:
        ConfigurationError: the configuration cannot be used.
    """
    proxy = "" if settings.push_proxy is None else settings.push_proxy.get_secret_value()
    try:
        return _providers(app, settings, clock, account, proxy)
    except NoProxy as error:
        raise ConfigurationError(f"HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, or SYNCBEAT_PUSH_PROXY: {error}") from None


def _providers(
    app: AppSettings, settings: Settings, clock: Clock, account: bytes | None, proxy: str
) -> tuple[Provider, Provider | None, str]:
    path = app.fcm_credentials
    if path is not None and account is None:
        account = _content(CredentialsFile.read(path))
    tokens = None if path is None else _access_tokens(account or b"", clock, proxy)
    rule = HttpRule(settings.delivery_in_flight, settings.delivery_timeout_s, proxy)
    webhook = None
    if app.webhook_url:
        from syncbeat_server.push.providers.webhook import RelayAddress, WebhookProvider

        token = "" if app.webhook_token is None else app.webhook_token.get_secret_value()
        webhook = WebhookProvider(RelayAddress(app.webhook_url, token, app.webhook_private), rule, clock)
    if tokens is None:
        return webhook or LogProvider(), None, ""
    from syncbeat_server.push.providers.fcm import FcmProvider

    fcm = FcmProvider(tokens, app.fcm_base_url, rule, clock)
    return fcm, webhook, f"fcm:{tokens.project_id}"


def _access_tokens(account: bytes, clock: Clock, proxy: str) -> AccessTokens:
    # firebase-admin is large: a process that pushes nothing to FCM does without it.
    from syncbeat_server.push.providers.fcm import AccessTokens

    try:
        tokens = AccessTokens(account, clock, proxy=proxy)
    except NoProxy:
        raise
    except Exception:  # noqa: BLE001  # google-auth and cryptography raise many kinds of errors for a malformed key
        raise ConfigurationError("SYNCBEAT_FCM_CREDENTIALS: not the JSON of a service account") from None
    try:
        check_base_url("the token_uri of FCM_CREDENTIALS", tokens.token_uri)
    except ValueError as error:
        raise ConfigurationError(f"SYNCBEAT_FCM_CREDENTIALS: {error}") from None
    return tokens


def _rate(settings: Settings) -> Rate:
    per_s = settings.push_per_minute / 60
    return Rate(per_s, max(_LEAST_BURST, per_s * _BURST_S), settings.push_ramp_s)
