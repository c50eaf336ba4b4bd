"""Answers grpc.health.v1: whether this process serves, asked once or followed.

The servicer of the library holds a lock while it writes to a watcher, so that one that does not read keeps the others
from their news and the process from its end. Here each watcher has one slot, the newest status, and waits for nobody.
(github.com/grpc/grpc/blob/master/doc/health-checking.md)
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import contextmanager

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2

from syncbeat_server.errors import FieldViolation, InvalidRequest, NotFound, Overloaded, SyncbeatError
from syncbeat_server.rpc.errors import abort
from syncbeat_server.rpc.request_body import Bodies
from syncbeat_server.rpc.response_stream import Answers, Outgoing
from syncbeat_server.rpc.validation.wire_format import fault_of_public

SERVICE_NAME = "grpc.health.v1.Health"
MAX_WATCHES_OF_CONNECTION, MAX_WATCHES = 16, 1_000
"""A client has one for each service it asks about on a connection, and there are some six."""
PATIENCE_S = 10.0
_AGAIN_S = 60.0
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN

Context = grpc.aio.ServicerContext[bytes, bytes]
_numbers = itertools.count(1)


class Health:
    """The status of the services of one server."""

    def __init__(self, services: Iterable[str], bodies: Bodies, answers: Answers) -> None:
        self._status: int = health_pb2.HealthCheckResponse.NOT_SERVING
        self._services = frozenset({"", *services})
        self._bodies = bodies
        self._answers = answers
        self._changed: set[asyncio.Event] = set()
        self._of_connection: Counter[str] = Counter()
        self._retired = False

    def handlers(self) -> dict[str, grpc.RpcMethodHandler[bytes, bytes]]:
        """The handlers by full method name."""
        return {
            f"/{SERVICE_NAME}/Check": grpc.stream_unary_rpc_method_handler(self._check),
            f"/{SERVICE_NAME}/Watch": grpc.stream_stream_rpc_method_handler(self._watch),
        }

    def set(self, status: int) -> None:
        """Every service has this status from here on, unless they are retired."""
        if not self._retired:
            self._status = status
            for changed in self._changed:
                changed.set()

    def retire(self) -> None:
        """They are NOT_SERVING for good: watchers are told so, and their streams end."""
        self.set(health_pb2.HealthCheckResponse.NOT_SERVING)
        self._retired = True

    async def _check(self, _requests: object, context: Context) -> bytes:
        try:
            service = await self._asked(context)
            if service not in self._services:
                raise NotFound("there is no such service")
        except SyncbeatError as fault:
            await abort(context, fault, _request_id())
        return _answer(self._status)

    async def _watch(self, _requests: object, context: Context) -> None:
        outgoing, peer = Outgoing(context, None, PATIENCE_S), context.peer()
        try:
            service = await self._asked(context)
            with self._counted(peer):
                await self._answers.send(outgoing, self._statuses(service))
        except SyncbeatError as fault:
            await abort(context, fault, _request_id())

    async def _asked(self, context: Context) -> str:
        data = await self._bodies.read(context, known=False)
        if fault := fault_of_public(data):
            raise InvalidRequest(FieldViolation("", fault))
        try:
            return str(health_pb2.HealthCheckRequest.FromString(data).service)
        except (DecodeError, UnicodeDecodeError, ValueError):
            raise InvalidRequest(FieldViolation("", "these bytes are not a HealthCheckRequest")) from None

    @contextmanager
    def _counted(self, peer: str) -> Iterator[None]:
        if self._of_connection[peer] >= MAX_WATCHES_OF_CONNECTION or self._of_connection.total() >= MAX_WATCHES:
            raise Overloaded("too many watch the health of this server", retry_after_s=_AGAIN_S)
        self._of_connection[peer] += 1
        try:
            yield
        finally:
            self._of_connection[peer] -= 1
            if not self._of_connection[peer]:
                del self._of_connection[peer]

    async def _statuses(self, service: str) -> AsyncGenerator[bytes, None]:
        """The newest status whenever it is another than the one before, until they are retired."""
        changed, told = asyncio.Event(), None
        self._changed.add(changed)
        try:
            while True:
                changed.clear()
                status = self._status if service in self._services else _UNKNOWN
                if status != told:
                    told = status
                    yield _answer(status)
                elif self._retired:
                    return
                else:
                    await changed.wait()
        finally:
            self._changed.discard(changed)


def _answer(status: int) -> bytes:
    return bytes(health_pb2.HealthCheckResponse(status=status).SerializeToString())


def _request_id() -> str:
    return f"health-{next(_numbers):x}"
