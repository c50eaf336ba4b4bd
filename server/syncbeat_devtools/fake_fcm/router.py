"""Routes requests to endpoints, for both HTTP versions."""

from __future__ import annotations

import asyncio
import re
from collections import Counter

from syncbeat_devtools.fake_fcm.control import control
from syncbeat_devtools.fake_fcm.fake import FakeFcm
from syncbeat_devtools.fake_fcm.responses import Exchange, Response, html_error
from syncbeat_devtools.fake_fcm.wire.buffered_protocol import new_read_buffer

_SEND = re.compile(rb"/v1/projects/([^/]+)/messages:send")
_TOKEN_TARGET = "/token"


class Router:
    """Routes requests to the endpoints of one fake, and owns the tasks of control requests."""

    def __init__(self, fake: FakeFcm) -> None:
        self.connections = fake.connections
        self.read_buffer = new_read_buffer()
        self._fake = fake
        self._send = fake.send_endpoint
        self._send_path = b"/v1/projects/%b/messages:send" % fake.settings.project_id.encode()
        self._scheme = "https" if fake.settings.tls else "http"
        self._control_tasks: dict[Exchange, asyncio.Task[Response]] = {}
        # Responses of the token endpoint are not sends, so their statuses stay out of the statistics.
        self._token_statuses: Counter[int] = Counter()

    def handle(
        self,
        exchange: Exchange,
        method: bytes,
        url: bytes,
        authorization: bytes | None,
        host: bytes,
        body: bytes,
    ) -> Response | None:
        """Answer a request. Returns None if the response comes later, through the exchange."""
        if url == self._send_path and method == b"POST":
            return self._send.handle(exchange, authorization, body)
        path, _, query = url.partition(b"?")
        if method == b"POST":
            if path == self._send_path:
                return self._send.handle(exchange, authorization, body)
            other = _SEND.fullmatch(path)
            if other is not None:
                project = other[1].decode("latin-1")
                return self._send.reject_project(exchange, authorization, project)
            if path == b"/token":
                return self._token(exchange, host, body)
        if path.startswith(b"/control/"):
            self._start_control(exchange, method, path, query, host, body)
            return None
        return html_error(404, "The requested URL was not found on this server.")

    def disconnected(self, exchange: Exchange) -> None:
        """Abandon the request of a client that has disconnected."""
        self._fake.injector.disconnected(exchange)
        task = self._control_tasks.pop(exchange, None)
        if task is not None:
            task.cancel()

    async def close(self) -> None:
        """Cancel all control requests."""
        tasks = tuple(self._control_tasks.values())
        self._control_tasks.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _token(self, exchange: Exchange, host: bytes, body: bytes) -> Response | None:
        token_uri = f"{self._origin(host)}/token"
        fault = self._fake.plan.next_scripted(_TOKEN_TARGET)
        if fault is None:
            return self._fake.token_endpoint.grant(body, token_uri)
        return self._fake.injector.inject(
            fault,
            exchange,
            _TOKEN_TARGET,
            lambda: self._fake.token_endpoint.grant(body, token_uri),
            self._token_statuses,
        )

    def _start_control(
        self, exchange: Exchange, method: bytes, path: bytes, query: bytes, host: bytes, body: bytes
    ) -> None:
        work = control(
            self._fake,
            method.decode("latin-1"),
            path.decode("latin-1"),
            query.decode("latin-1"),
            body,
            self._origin(host),
        )
        task = asyncio.get_running_loop().create_task(work)
        self._control_tasks[exchange] = task
        task.add_done_callback(lambda done: self._answer_control(exchange, done))

    def _answer_control(self, exchange: Exchange, task: asyncio.Task[Response]) -> None:
        if self._control_tasks.get(exchange) is task:
            del self._control_tasks[exchange]
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            exchange.respond(task.result())
            return
        exchange.reset()
        asyncio.get_running_loop().call_exception_handler({"message": "fake FCM control", "exception": error})

    def _origin(self, host: bytes) -> str:
        """Return the address by which the client reached the fake, which is the audience of its assertion."""
        return f"{self._scheme}://{host.decode('latin-1')}" if host else self._fake.base_url
