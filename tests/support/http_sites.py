"""Serve handlers over HTTP on a port of their own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web


@asynccontextmanager
async def site(path: str, handle: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[str]:
    """Serve GET of `path` for the block; yields the address before the path."""
    async with sites(web.get(path, handle)) as address:
        yield f"http://{address}"


@asynccontextmanager
async def sites(*routes: web.RouteDef) -> AsyncIterator[str]:
    """Serve these routes for the block; yields host and port."""
    application = web.Application()
    application.add_routes(routes)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
