"""Makes the channel of each app from its configuration, and follows changes of that."""

from __future__ import annotations

import asyncio
import logging
from urllib.parse import urlsplit

from syncbeat_server.app.process import Process
from syncbeat_server.app.push.providers import credentials_content, providers
from syncbeat_server.errors import SyncbeatError
from syncbeat_server.ops.fault_log import FaultLog
from syncbeat_server.ops.settings.app import AppSettings
from syncbeat_server.push.delivery.channel import Channel, app_secret
from syncbeat_server.push.delivery.flow_control import Gate
from syncbeat_server.push.delivery.maintenance import warn_of_unfit_templates
from syncbeat_server.push.providers import Provider
from syncbeat_server.resilience.breaker import BreakerState
from syncbeat_server.resilience.breaker_registry import BreakerRegistry
from syncbeat_server.resilience.fleet_breaker import FleetBreaker

_log = logging.getLogger(__name__)

_MAX_RETIRED = 8  # replaced providers kept open, for attempts that are still under way in them


class Channels:
    """Makes the channel of each app, and remakes the provider of those whose configuration has changed."""

    def __init__(self, process: Process, breakers: BreakerRegistry) -> None:
        self._process = process
        self._breakers = breakers
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

    def open_breakers(self) -> list[str]:
        """Return the apps whose provider is not asked now."""
        return [name for name, channel in self.by_app.items() if channel.gate.breaker is not BreakerState.CLOSED]

    async def run(self) -> None:
        """Apply changes of the apps' configuration, for ever."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            while not await self._apply_changes():
                await self._process.clock.sleep(self._process.rules.files_every_s)

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
        account = None if file is None else credentials_content(file)
        made_of = (app.fcm_base_url, app.webhook_url, app.webhook_token, app.webhook_private, file)
        if known is not None and made_of == self._made_of[app_id]:
            return
        settings, clock = self._process.settings, self._process.clock
        secret = await app_secret(self._process.database, app_id) if known is None else known.ack_secret
        first, fallback, project = providers(app, settings, clock, account)
        # Deployments that send through one project share its quota: FCM counts what they send together.
        rate_key = project or f"{self._process.bus.deployment}:{app_id}"
        host = self._webhook_breaker(app)
        if known is None:
            breaker = self._breakers.of(f"push:{app_id}")
            gate = Gate(settings.delivery_in_flight, settings.push_per_minute / 60, breaker, clock)
            known = self.by_app[app_id] = Channel(first, gate, rate_key, secret, fallback)
            known.max_per_day = app.max_per_day
            known.templates = self._process.apps.templates(app_id)
        else:
            self._retire(known)
            known.provider, known.fallback, known.rate_key = first, fallback, rate_key
        known.gate.endpoint, known.fallback_breaker = (host, None) if fallback is None else (None, host)
        self._made_of[app_id] = made_of

    def _webhook_breaker(self, app: AppSettings) -> FleetBreaker | None:
        """Return the breaker of the host of an app's webhook, which apps may share."""
        if not app.webhook_url:
            return None
        parts = urlsplit(app.webhook_url)
        return self._breakers.of(f"webhook:{parts.hostname}:{parts.port or parts.scheme}")

    def _retire(self, channel: Channel) -> None:
        # Closed later: attempts may be under way.
        self._retired += [channel.provider] if channel.fallback is None else [channel.provider, channel.fallback]
