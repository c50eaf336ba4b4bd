"""One app's way to its devices: its provider, what limits it, what its notifications say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from syncbeat_server.push.content.templates import Template
from syncbeat_server.push.delivery.flow_control import Gate
from syncbeat_server.push.providers import Provider
from syncbeat_server.push.store import lifecycle
from syncbeat_server.storage.postgres.database import Database


@dataclass(slots=True)
class Channel:
    """Replaced in part when the app's configuration changes; the gate keeps what it learned.

    `rate_key` names what shares a rate: the provider's project, in all deployments. `fallback` is asked when the
    provider cannot be reached. `max_per_day` is the day's maximum of a device whose user set none; None: no maximum.
    """

    provider: Provider
    gate: Gate
    rate_key: str
    ack_secret: bytes
    fallback: Provider | None = None
    max_per_day: int | None = None
    templates: Mapping[str, Template] = field(default_factory=dict)


async def app_secret(database: Database, app_id: str) -> bytes:
    """A secret of an app that only its database knows: it signs ack tokens. Raises DependencyDown."""
    async with database.connection() as conn:
        return await lifecycle.app_secret(conn, app_id)
