"""The operators' endpoint bounds what a connection can ask, and how long it takes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import aiohttp
import pytest
from prometheus_client import CollectorRegistry, Gauge

from syncbeat_server.http import operator_endpoint
from syncbeat_server.http.operator_endpoint import OperatorViews, serve_http
from syncbeat_server.runtime.health_monitor import HealthReport, Readiness
from tests.support.fake_clock import ahead, wait_until
from tests.support.ports import free_port
from tests.support.raw_http import connected, is_over

pytestmark = pytest.mark.http


@pytest.fixture
async def port() -> AsyncIterator[int]:
    """An endpoint whose /metrics is larger than the buffers of sockets."""
    registry = CollectorRegistry()
    Gauge("large", "x" * 10_000_000, registry=registry)

    async def health() -> HealthReport:
        return HealthReport(Readiness.READY)

    free = free_port()

    async def metrics() -> CollectorRegistry:
        return registry

    async with serve_http(f"127.0.0.1:{free}", OperatorViews(metrics, health, dict, lambda: b"{}"), share_port=False):
        yield free


STALLS = {
    "says nothing": b"",
    "half a line": b"GET /heal",
    "half a header": b"GET /healthz HTTP/1.1\r\nhost: x\r\nx-slow: ",
    "half a body": b"POST /healthz HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\nx",
}


@pytest.mark.parametrize("sent", STALLS.values(), ids=STALLS)
async def test_slow_client_that_stalls_is_disconnected(port: int, sent: bytes) -> None:
    async with connected(port) as streams:
        streams[1].write(sent)
        async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{port}/healthz") as answer:
            assert answer.status == 200, "while it stalls others are served"
        with ahead(operator_endpoint.CONNECTION_S):
            await is_over(streams)


async def test_slow_client_that_trickles_is_disconnected(port: int) -> None:
    async with connected(port) as (reader, writer):
        writer.write(b"GET /healthz HTTP/1.1\r\n")
        ended = asyncio.create_task(is_over((reader, writer)))

        def trickled() -> bool:
            writer.write(b"a: b\r\n")
            return ended.done()

        with ahead(operator_endpoint.CONNECTION_S):
            await wait_until(trickled)


async def test_slow_client_that_does_not_read_is_disconnected(port: int) -> None:
    async with connected(port) as (reader, writer):
        writer.write(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        with ahead(operator_endpoint.CONNECTION_S):
            async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{port}/healthz"):
                pass
        assert len(await is_over((reader, writer))) < 10_000_000


async def test_connection_serves_one_request(port: int) -> None:
    async with connected(port) as streams:
        streams[1].write(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n" * 50)
        assert (await is_over(streams)).count(b"HTTP/1.1 200") == 1


OVER = {
    "line": b"GET /" + b"x" * operator_endpoint.MOST_LINE + b" HTTP/1.1\r\nhost: x\r\n\r\n",
    "header": b"GET /healthz HTTP/1.1\r\nhost: x\r\nx: " + b"x" * operator_endpoint.MOST_FIELD * 2 + b"\r\n\r\n",
    "headers": b"GET /healthz HTTP/1.1\r\nhost: x\r\n" + b"x: y\r\n" * operator_endpoint.MOST_HEADERS + b"\r\n",
    "headers without an end": b"GET /healthz HTTP/1.1\r\n" + b"x: y\r\n" * 10_000,
    "a line without an end": b"GET /" + b"x" * 100_000,
}


@pytest.mark.parametrize("sent", OVER.values(), ids=OVER)
async def test_request_above_the_limits_is_refused(port: int, sent: bytes) -> None:
    async with connected(port) as streams:
        streams[1].write(sent)
        answer = await is_over(streams)
    assert not answer or answer.split()[1].startswith(b"4"), answer[:100]


async def test_connection_limit_closes_the_oldest(port: int) -> None:
    async with AsyncExitStack() as stack:
        many = operator_endpoint.MOST_CONNECTIONS + 10
        held = [await stack.enter_async_context(connected(port)) for _ in range(many)]
        for streams in held[:10]:
            await is_over(streams)
        async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{port}/readyz") as answer:
            assert answer.status == 200


REFUSED = {
    "no such page": (b"GET /nothing HTTP/1.1\r\nhost: x\r\n\r\n", 404, "NOT_FOUND"),
    "no such method": (b"POST /healthz HTTP/1.1\r\nhost: x\r\n\r\n", 405, "INVALID_FIELD"),
    "no HTTP": (b"\x16\x03\x01 <script>\r\n\r\n", 400, "INVALID_FIELD"),
    "header too long": (OVER["header"], 400, "INVALID_FIELD"),
    "line too long": (OVER["line"], 400, "INVALID_FIELD"),
}


@pytest.mark.parametrize(("sent", "status", "reason"), REFUSED.values(), ids=REFUSED)
async def test_refusal_is_a_problem_document(port: int, sent: bytes, status: int, reason: str) -> None:
    async with connected(port) as streams:
        streams[1].write(sent)
        head, _, body = (await is_over(streams)).partition(b"\r\n\r\n")
    assert head.split()[1] == str(status).encode()
    assert b"content-type: application/problem+json" in head.lower()
    problem = json.loads(body)
    assert (problem["status"], problem["reason"]) == (status, reason)
    assert problem.keys() == {"title", "status", "detail", "reason"}
    assert "script" not in body.decode(), "nothing that was sent is repeated"


async def no_metrics() -> CollectorRegistry:
    return CollectorRegistry()


async def test_failure_of_ours_is_a_problem_document_without_its_text(caplog: pytest.LogCaptureFixture) -> None:
    async def health() -> HealthReport:
        raise RuntimeError("a secret")

    free, views = free_port(), OperatorViews(no_metrics, health, dict, lambda: b"{}")
    async with (
        serve_http(f"127.0.0.1:{free}", views, share_port=False),
        aiohttp.ClientSession() as http,
        http.get(f"http://127.0.0.1:{free}/readyz", headers={"accept": "text/html"}) as answer,
    ):
        assert (answer.status, answer.content_type) == (500, "application/problem+json")
        assert (await answer.json(content_type=None))["reason"] == "INTERNAL"
        assert "a secret" not in await answer.text()
    assert "a secret" in caplog.text


async def test_operator_endpoint_listens_on_an_ipv6_address() -> None:
    free = free_port()

    async def health() -> HealthReport:
        return HealthReport(Readiness.READY)

    async def metrics() -> CollectorRegistry:
        return CollectorRegistry()

    views = OperatorViews(metrics, health, dict, lambda: b"{}")
    async with (
        serve_http(f"[::1]:{free}", views, share_port=False),
        aiohttp.ClientSession() as http,
        http.get(f"http://[::1]:{free}/healthz") as answer,
    ):
        assert answer.status == 200
