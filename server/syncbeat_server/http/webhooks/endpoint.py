"""Serves the door of webhooks over HTTP, bounded before anything is known of a caller.

A connection serves one request. Its head and body have to be there a few seconds after it was opened; of connections,
and of bodies being read, a further one ends the oldest, so that whoever stalls makes room. Those whose signature was
found good are left alone: `IngestRule` bounds them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any, cast
from urllib.parse import quote

from aiohttp import web

from syncbeat_server.errors import Reason
from syncbeat_server.http.listening import listen
from syncbeat_server.http.problems import ProblemConnection, close_after, end, problem, problems
from syncbeat_server.http.webhooks.door import WebhookDoor

PATH = "/v1/webhooks/{app}/{source}"
MOST_BODY = 262_144
"""Octets of a body: what IngestEvent takes as a payload. Stripe's and GitHub's usual ones have a tenth of it."""

AddressOf = Callable[[str, Sequence[str]], str]
"""Returns the address of a sender from its connection's peer, as gRPC spells it, and the values of x-forwarded-for."""

CLOSING_S = 0.2
"""Seconds that answers on the way have to be sent when a process ends: what is ingested was waited for."""


@dataclass(frozen=True)
class DoorRule:
    """Bounds of connections.

    Attributes:
        connections: Connections at a time.
        bodies: Bodies being read at a time: 16 MiB at the most.
        read_s: Seconds from a connection's beginning to the end of its request.
        life_s: Seconds from its beginning to its end, whatever it does: reading, ingesting and answering.
        line, header, headers: The most octets of the request line and of a header, and headers.
    """

    connections: int = 256
    bodies: int = 64
    read_s: float = 5.0
    life_s: float = 15.0
    line: int = 1_024
    header: int = 4_096
    headers: int = 48


@asynccontextmanager
async def serve_webhooks(
    address: str, door: WebhookDoor, address_of: AddressOf, *, share_port: bool, rule: DoorRule | None = None
) -> AsyncIterator[asyncio.Server]:
    """Serve the door for the block, and yield the listener, so that it can be closed before what is under way ends.

    Raises:
        ConfigurationError: the address is taken or unusable.
    """
    rule = rule or DoorRule()
    application = web.Application(middlewares=[problems], client_max_size=MOST_BODY + 1)
    application.add_routes([web.post(PATH, _Receiver(door, rule, address_of).receive)])
    application.on_response_prepare.append(close_after)
    runner = web.AppRunner(
        application,
        shutdown_timeout=CLOSING_S,
        access_log=None,
        max_line_size=rule.line,
        max_field_size=rule.header,
        max_headers=rule.headers,
        lingering_time=0.0,
        auto_decompress=False,  # what is signed is what was sent, and small bodies may become large
    )
    await runner.setup()
    try:
        server = await listen("SYNCBEAT_EVENTS_LISTEN", address, _connections(runner, rule), share_port=share_port)
        try:
            yield server
        finally:
            server.close()
    finally:
        await runner.cleanup()


class _Connection(ProblemConnection):
    """Connection that knows whether its caller is known."""

    __slots__ = ("is_known", "is_read")

    def __init__(self, server: Any, **options: Any) -> None:
        super().__init__(server, **options)
        self.is_known = False
        self.is_read = False


class _Receiver:
    """Reads requests, a bounded number at a time."""

    def __init__(self, door: WebhookDoor, rule: DoorRule, address_of: AddressOf) -> None:
        self._door = door
        self._address_of = address_of
        self._rule = rule
        self._reading: dict[_Connection, None] = {}

    async def receive(self, request: web.Request) -> web.StreamResponse:
        """Answer a webhook."""
        connection = cast(_Connection, request.protocol)
        if (request.content_length or 0) > MOST_BODY:
            raise web.HTTPRequestEntityTooLarge(MOST_BODY, request.content_length or 0)
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            detail = "send the body as it is, without a content-encoding"
            return problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, Reason.INVALID_FIELD, detail)
        body = await self._body(request, connection)
        headers = {name.lower(): request.headers.getall(name) for name in set(request.headers)}

        def known() -> None:
            connection.is_known = True

        app_id, source = request.match_info["app"], request.match_info["source"]
        address = partial(self._address_of, _peer(request), headers.get("x-forwarded-for", []))
        answer = await self._door.receive(app_id, source, headers, body, known, address)
        return web.Response(
            body=answer.body, status=answer.status, content_type=answer.content_type, headers=answer.headers
        )

    async def _body(self, request: web.Request, connection: _Connection) -> bytes:
        for oldest in list(self._reading)[: max(0, len(self._reading) + 1 - self._rule.bodies)]:
            end(oldest)
            self._reading.pop(oldest, None)
        self._reading[connection] = None
        try:
            body = await request.read()
        finally:
            self._reading.pop(connection, None)
        connection.is_read = True
        return body


def _peer(request: web.Request) -> str:
    name = None if request.transport is None else request.transport.get_extra_info("peername")
    if not isinstance(name, tuple):
        return "unix:"
    host, port = name[:2]
    return f"ipv6:[{quote(host)}]:{port}" if ":" in host else f"ipv4:{host}:{port}"


def _connections(runner: web.AppRunner, rule: DoorRule) -> Callable[[], web.RequestHandler]:
    """Return the factory of connections, which ends each after its time, and the oldest when there are too many."""
    server, loop = runner.server, asyncio.get_running_loop()
    if server is None:
        raise RuntimeError("the runner has to be set up first")

    def end_unread(connection: _Connection) -> None:
        if not connection.is_read:
            end(connection)

    def connection() -> web.RequestHandler:
        here = cast(list[_Connection], server.connections)
        unknown = [one for one in here if not one.is_known]
        for oldest in unknown[: max(0, len(here) + 1 - rule.connections)]:
            end(oldest)
        made = _Connection(server, loop=loop, **cast(Any, server)._kwargs)  # it has no option for the class
        loop.call_later(rule.read_s, end_unread, made)
        loop.call_later(rule.life_s, end, made)
        return made

    return connection
