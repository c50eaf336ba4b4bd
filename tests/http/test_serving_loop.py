"""Tests that connections end on uvloop too, which serves in production: its transports are of no asyncio class."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

import pytest
import uvloop
from prometheus_client import CollectorRegistry

from syncbeat_server.http.operator_endpoint import MOST_CONNECTIONS, OperatorViews, serve_http
from syncbeat_server.http.webhooks.endpoint import DoorRule, serve_webhooks
from syncbeat_server.runtime.health_monitor import HealthReport, Readiness
from tests.support.ports import free_port
from tests.support.raw_http import connected, is_over
from tests.support.webhooks import Desk

pytestmark = pytest.mark.http

RULE = DoorRule(connections=8, read_s=0.2)


@asynccontextmanager
async def webhooks() -> AsyncIterator[int]:
    async with serve_webhooks("127.0.0.1:0", Desk([]).door(), lambda *_: "", share_port=False, rule=RULE) as server:
        yield server.sockets[0].getsockname()[1]


@asynccontextmanager
async def operators() -> AsyncIterator[int]:
    async def health() -> HealthReport:
        return HealthReport(Readiness.READY)

    async def metrics() -> CollectorRegistry:
        return CollectorRegistry()

    port, views = free_port(), OperatorViews(metrics, health, dict, lambda: b"{}")
    async with serve_http(f"127.0.0.1:{port}", views, share_port=False):
        yield port


@pytest.mark.parametrize(("endpoint", "most"), [(webhooks, RULE.connections), (operators, MOST_CONNECTIONS)])
def test_connections_beyond_their_bound_are_ended_on_uvloop(
    endpoint: Callable[[], AbstractAsyncContextManager[int]], most: int
) -> None:
    async def oldest_ends() -> None:
        async with AsyncExitStack() as stack:
            port = await stack.enter_async_context(endpoint())
            held = [await stack.enter_async_context(connected(port)) for _ in range(most + 1)]
            assert not await is_over(held[0])

    uvloop.run(oldest_ends())


@pytest.mark.parametrize(
    "sent", [b"", b"POST /v1/web", b"POST /v1/webhooks/shop/x HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{"]
)
def test_client_that_stalls_is_disconnected_on_uvloop(sent: bytes) -> None:
    async def ends() -> None:
        async with webhooks() as port, connected(port) as streams:
            streams[1].write(sent)
            assert not await is_over(streams)

    uvloop.run(ends())
