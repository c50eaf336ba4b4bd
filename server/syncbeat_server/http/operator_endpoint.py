"""Serves HTTP for operators: /metrics, /healthz and /readyz, and the public keys of our own sessions.

A connection serves one request and ends after ten seconds, also if its client sends or reads slowly, or not at all.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, cast

import orjson
from aiohttp import web
from prometheus_client.exposition import choose_encoder

from syncbeat_server.errors import Reason
from syncbeat_server.http.listening import listen
from syncbeat_server.http.problems import ProblemConnection, close_after, end, problem, problems
from syncbeat_server.ops.group_metrics.snapshot import Collected
from syncbeat_server.runtime.health_monitor import HealthReport

# As Supabase and Envoy cache keys: a new key must be published for as long before it signs.
_KEYS_CACHED = "public, max-age=600"

CONNECTION_S = 10.0
"""The life of a connection, in seconds: Prometheus's default time-out."""
MOST_CONNECTIONS = 64
"""Connections at a time; a further one ends the oldest. A handful of probes and scrapers take milliseconds each."""
MOST_LINE, MOST_FIELD, MOST_HEADERS = 2_048, 4_096, 32
"""The most octets of a request line and of a header, and headers: 8 MiB on all connections together."""


CLOSING_S = 0.2
"""Seconds that requests under way have to end when a process does."""
_JSON = "application/json"


@dataclass(frozen=True)
class OperatorViews:
    """Views that the endpoint shows.

    Attributes:
        metrics_now: Returns the metrics, of this process or of its whole group.
        health: Returns the state of the process.
        pool: Returns the figures of the pool of connections, for `/readyz?verbose`.
        jwks: The document with the public keys of our own sessions, for other services that verify their tokens.
    """

    metrics_now: Callable[[], Awaitable[Collected]]
    health: Callable[[], Awaitable[HealthReport]]
    pool: Callable[[], Mapping[str, object]]
    jwks: Callable[[], bytes]

    async def metrics(self, request: web.Request) -> web.Response:
        """Answer with all metrics, in OpenMetrics, which has exemplars, to who accepts it; else as Prometheus reads."""
        encode, content_type = choose_encoder(",".join(request.headers.getall("accept", ())))
        return web.Response(body=encode(await self.metrics_now()), headers={"content-type": content_type})

    async def healthz(self, _request: web.Request) -> web.Response:
        """Answer that the process lives, whatever it lacks."""
        return web.Response(text="ok\n")

    async def readyz(self, request: web.Request) -> web.Response:
        """Answer 200 if the process is to be sent calls, else 503; `?verbose` says in JSON what it was found by."""
        report = await self.health()
        status = HTTPStatus.OK if report.ready else HTTPStatus.SERVICE_UNAVAILABLE
        if "verbose" in request.query:
            return web.Response(body=_verbose(report, self.pool()), content_type=_JSON, status=status)
        if report.fault is not None:
            return problem(status, report.fault.reason or Reason.INTERNAL, report.fault.detail)
        return web.Response(text=f"{report.readiness}\n")

    async def keys(self, _request: web.Request) -> web.Response:
        """Answer with the public keys of our own sessions."""
        headers = {"cache-control": _KEYS_CACHED}
        return web.Response(body=self.jwks(), content_type="application/jwk-set+json", headers=headers)


@asynccontextmanager
async def serve_http(address: str, views: OperatorViews, *, share_port: bool) -> AsyncIterator[None]:
    """Serve HTTP for the block.

    Raises:
        ConfigurationError: the address is taken or unusable.
    """
    application = web.Application(middlewares=[problems])
    application.add_routes(
        [
            web.get("/metrics", views.metrics),
            web.get("/healthz", views.healthz),
            web.get("/readyz", views.readyz),
            web.get("/.well-known/jwks.json", views.keys),
        ]
    )
    application.on_response_prepare.append(close_after)
    runner = web.AppRunner(
        application,
        shutdown_timeout=CLOSING_S,
        access_log=None,
        max_line_size=MOST_LINE,
        max_field_size=MOST_FIELD,
        max_headers=MOST_HEADERS,
        lingering_time=0.0,  # request bodies are not read
    )
    await runner.setup()
    try:
        server = await listen("SYNCBEAT_OPS_LISTEN", address, _connections(runner), share_port=share_port)
        try:
            yield
        finally:
            server.close()
    finally:
        await runner.cleanup()


def _verbose(report: HealthReport, pool: Mapping[str, object]) -> bytes:
    checks = {
        name: {"state": result.state, "reason": result.reason, "detail": result.detail}
        for name, result in report.checks.items()
    }
    detail = "" if report.fault is None else report.fault.detail
    document = {"status": report.readiness, "detail": detail, "checks": checks, "pool": pool}
    return orjson.dumps(document, option=orjson.OPT_APPEND_NEWLINE)


def _connections(runner: web.AppRunner) -> Callable[[], web.RequestHandler]:
    """Return the factory of connections, which ends each after its time, and the oldest when there are too many."""
    server, loop = runner.server, asyncio.get_running_loop()
    if server is None:
        raise RuntimeError("the runner has to be set up first")

    def connection() -> web.RequestHandler:
        here = server.connections
        for oldest in here[: max(0, len(here) + 1 - MOST_CONNECTIONS)]:
            end(oldest)
        made = ProblemConnection(server, loop=loop, **cast(Any, server)._kwargs)  # it has no option for the class
        loop.call_later(CONNECTION_S, end, made)
        return made

    return connection
