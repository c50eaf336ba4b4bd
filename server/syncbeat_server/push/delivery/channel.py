"""Describes one app's way to its devices: its provider, what limits it, and its templates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from syncbeat_server.push.content.templates import Template
from syncbeat_server.push.delivery.flow_control import Gate
from syncbeat_server.push.providers import Provider
from syncbeat_server.push.store import app_secrets
from syncbeat_server.resilience.fleet_breaker import FleetBreaker
from syncbeat_server.storage.postgres.database import Database


@dataclass(slots=True)
class Channel:
    """The provider of one app and the limits on using it.

    Its owner replaces fields when the app's configuration changes; the gate stays, with what it has learned.
    `rate_key` names the rate that is shared: the provider's project, across all deployments. `fallback` is tried when
    the provider cannot be reached, unless `fallback_breaker` is open. `max_per_day` is the daily maximum of a device
    whose user set none; None: unlimited.
    """

    provider: Provider
    gate: Gate
    rate_key: str
    ack_secret: bytes
    fallback: Provider | None = None
    max_per_day: int | None = None
    templates: Mapping[str, Template] = field(default_factory=dict)
    fallback_breaker: FleetBreaker | None = None

    @property
    def free_slots(self) -> int:
        """Number of attempts that may be started now."""
        return self.gate.free_slots(has_fallback=self.has_fallback)

    @property
    def has_fallback(self) -> bool:
        """True while a fallback can be asked in place of the provider."""
        return self.fallback is not None and (self.fallback_breaker is None or self.fallback_breaker.retry_in_s <= 0)


async def app_secret(database: Database, app_id: str) -> bytes:
    """Return the app's secret that signs ack tokens and never leaves its database. Raises DependencyDown."""
    async with database.connection() as conn:
        return await app_secrets.read_or_create(conn, app_id)
