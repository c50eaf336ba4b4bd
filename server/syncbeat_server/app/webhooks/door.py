"""Serves the door of webhooks in a process that serves RPCs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from syncbeat_server.app.process import Process
from syncbeat_server.app.webhooks.ingest import SourceIngest
from syncbeat_server.app.webhooks.samples import require_sources
from syncbeat_server.app.webhooks.sources import WebhookSources
from syncbeat_server.events.ingest import EventIngest

if TYPE_CHECKING:
    from syncbeat_server.rpc.pipeline.call_limits import CallLimits


@asynccontextmanager
async def running_webhooks(process: Process, ingest: EventIngest, limits: CallLimits) -> AsyncIterator[None]:
    """Take webhooks in for the block, if they are to be; at its end requests under way are answered.

    A change of the apps file is adopted only if all sources can be used, also where webhooks are not taken in.

    Raises:
        ConfigurationError: a source or the address cannot be used.
    """
    settings = process.settings
    process.apps.require(partial(require_sources, settings.keep_events_days))
    if not settings.events_listen:
        yield
        return
    from syncbeat_server.http.webhooks.door import WebhookDoor
    from syncbeat_server.http.webhooks.endpoint import serve_webhooks  # aiohttp's server is large
    from syncbeat_server.rpc.pipeline.client_address import full_address

    sources = WebhookSources(process.apps, settings.keep_events_days)
    door = WebhookDoor(
        lambda: sources.current,
        SourceIngest(ingest, process.apps.templates, limits, process.clock),
        process.metrics.webhooks.received,
        process.clock,
    )
    address_of = partial(full_address, trusted=settings.trusted_proxies)
    async with serve_webhooks(settings.events_listen, door, address_of, share_port=settings.share_port) as server:
        try:
            yield
        finally:
            server.close()
            await process.shutdown.wait_for(door.drained(), 0.0)
