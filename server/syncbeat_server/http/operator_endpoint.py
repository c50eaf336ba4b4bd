"""Serves HTTP for operators: /metrics, /healthz and /readyz, and the public keys of our own sessions.

A connection serves one request and ends after ten seconds, also if its client sends or reads slowly, or not at all.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from syncbeat_server.errors import ConfigurationError

# As Supabase and Envoy cache keys: a new key must be published for as long before it signs.
_KEYS_CACHED = "public, max-age=600"

CONNECTION_S = 10.0
"""The life of a connection, in seconds: Prometheus's default time-out."""
MOST_CONNECTIONS = 64
"""Connections at a time; a further one ends the oldest. A handful of probes and scrapers take milliseconds each."""
MOST_LINE, MOST_FIELD, MOST_HEADERS = 2_048, 4_096, 32
"""The most octets of a request line and of a header, and headers: 8 MiB on all connections together."""


@asynccontextmanager
async def serve_http(
    listen: str, registry: CollectorRegistry, ready: Callable[[], Awaitable[bool]], jwks: bytes, *, share_port: bool
) -> AsyncIterator[None]:
    """Serve HTTP for the block. `/readyz` is 503 while `ready()` returns False; `/healthz` is always 200.

    `jwks` is the document with the public keys of our own sessions, for other services that verify their tokens.

    Raises:
        ConfigurationError: the address is taken or unusable.
    """

    async def metrics(_request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"content-type": CONTENT_TYPE_LATEST})

    async def healthz(_request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_request: web.Request) -> web.Response:
        good = await ready()
        return web.Response(text="ready\n" if good else "not ready\n", status=200 if good else 503)

    async def keys(_request: web.Request) -> web.Response:
        return web.Response(body=jwks, content_type="application/jwk-set+json", headers={"cache-control": _KEYS_CACHED})

    application = web.Application()
    application.add_routes(
        [
            web.get("/metrics", metrics),
            web.get("/healthz", healthz),
            web.get("/readyz", readyz),
            web.get("/.well-known/jwks.json", keys),
        ]
    )
    application.on_response_prepare.append(_close_after)
    runner = web.AppRunner(
        application,
        access_log=None,
        max_line_size=MOST_LINE,
        max_field_size=MOST_FIELD,
        max_headers=MOST_HEADERS,
        lingering_time=0.0,  # request bodies are not read
    )
    await runner.setup()
    host, _, port = listen.rpartition(":")
    loop = asyncio.get_running_loop()
    try:
        server = await loop.create_server(_connections(runner), host, int(port), reuse_port=share_port)
    except OSError:
        await runner.cleanup()
        raise ConfigurationError(f"SYNCBEAT_OPS_LISTEN: cannot listen on {listen}; is the port taken?") from None
    try:
        yield
    finally:
        server.close()
        await runner.cleanup()


async def _close_after(_request: web.Request, response: web.StreamResponse) -> None:
    response.force_close()


def _connections(runner: web.AppRunner) -> Callable[[], web.RequestHandler]:
    """Return the factory of connections, which ends each after its time, and the oldest when there are too many."""
    server, loop = runner.server, asyncio.get_running_loop()
    if server is None:
        raise RuntimeError("the runner has to be set up first")

    def connection() -> web.RequestHandler:
        here = server.connections
        for oldest in here[: max(0, len(here) + 1 - MOST_CONNECTIONS)]:
            _end(oldest)
        made = server()
        loop.call_later(CONNECTION_S, _end, made)
        return made

    return connection


def _end(connection: web.RequestHandler) -> None:
    # Aborted: closing would wait for a client that does not read.
    if isinstance(connection.transport, asyncio.Transport):
        connection.transport.abort()
