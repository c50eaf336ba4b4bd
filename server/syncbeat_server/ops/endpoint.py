"""What is read over HTTP: /metrics for Prometheus, /healthz and /readyz for an orchestrator, our sessions' keys."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from syncbeat_server.errors import ConfigurationError

# Supabase's and Envoy's: a key that is new must be published for as long before it signs.
_KEYS_CACHED = "public, max-age=600"


@asynccontextmanager
async def serving_http(
    listen: str, registry: CollectorRegistry, ready: Callable[[], Awaitable[bool]], jwks: bytes, *, share_port: bool
) -> AsyncIterator[None]:
    """Serve for the block. `/readyz` is 503 while `ready()` is false; `/healthz` says that the process runs.

    `jwks` is the document with the public keys that sign our own sessions, for others who check their tokens.

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
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    host, _, port = listen.rpartition(":")
    try:
        await web.TCPSite(runner, host, int(port), reuse_port=share_port).start()
    except OSError:
        await runner.cleanup()
        raise ConfigurationError(f"SYNCBEAT_OPS_LISTEN: cannot listen on {listen}; is the port taken?") from None
    try:
        yield
    finally:
        await runner.cleanup()
