"""Serves grpc.health.v1: the serving status of this process, asked once or watched.

The library's own servicer holds a lock while it writes to a watcher, so a watcher that does not read keeps the news
from the others and the process from ending. Here each watcher has one slot, the newest status, and blocks nobody.
(github.com/grpc/grpc/blob/master/doc/health-checking.md)
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncGenerator, Collection, Iterable, Iterator
from contextlib import contextmanager

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2

from syncbeat_server.errors import FieldReason, FieldViolation, InvalidRequest, NotFound, Overloaded, SyncbeatError
from syncbeat_server.rpc.pipeline.error_status import abort
from syncbeat_server.rpc.pipeline.request_body import RequestReader
from syncbeat_server.rpc.pipeline.unread_streams import ResponseStreams, StreamedCall
from syncbeat_server.rpc.validation.compression import decompress
from syncbeat_server.rpc.validation.wire_format import MAX_PUBLIC_BYTES, public_request_fault

SERVICE_NAME = "grpc.health.v1.Health"
MAX_WATCHES_PER_CONNECTION, MAX_WATCHES = 16, 1_000
"""A client has one watch for each service it asks about on a connection, and there are some six."""
LIVENESS = "liveness"
"""Asked as a service it is SERVING as long as the process answers, whatever it lacks: for orchestrators that restart
what does not live. Readiness is the empty name."""
WRITE_TIMEOUT_S = 10.0
_RETRY_AFTER_S = 60.0
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
_SERVING, _NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING

Context = grpc.aio.ServicerContext[bytes, bytes]
_numbers = itertools.count(1)


class HealthServicer:
    """The serving status of each of one server's services, and of the server as a whole, whose name is empty."""

    def __init__(
        self,
        services: Iterable[str],
        requests: RequestReader,
        response_streams: ResponseStreams,
        max_watches: int = MAX_WATCHES,
    ) -> None:
        self._status: dict[str, int] = {**dict.fromkeys(("", *services), _NOT_SERVING), LIVENESS: _SERVING}
        self._requests = requests
        self._response_streams = response_streams
        self._max_watches = max_watches
        self._changed: set[asyncio.Event] = set()
        self._watches_by_peer: Counter[str] = Counter()
        self._draining = False

    def handlers(self) -> dict[str, grpc.RpcMethodHandler[bytes, bytes]]:
        """Return the handlers by full method name."""
        return {
            f"/{SERVICE_NAME}/Check": grpc.stream_unary_rpc_method_handler(self._check),
            f"/{SERVICE_NAME}/Watch": grpc.stream_stream_rpc_method_handler(self._watch),
        }

    def set_serving(self, services: Collection[str]) -> None:
        """Report these services as SERVING and the others as not, unless the server drains."""
        if not self._draining:
            for name in self._status.keys() - {LIVENESS}:
                self._status[name] = _SERVING if name in services else _NOT_SERVING
            for changed in self._changed:
                changed.set()

    def drain(self) -> None:
        """Report NOT_SERVING for good: watchers get it, and their streams end."""
        self.set_serving(())
        self._draining = True

    async def _check(self, _requests: object, context: Context) -> bytes:
        try:
            service = await self._read_service(context)
            if service not in self._status:
                raise NotFound("there is no such service")
        except SyncbeatError as fault:
            await abort(context, fault, _request_id())
        return _answer(self._status[service])

    async def _watch(self, _requests: object, context: Context) -> None:
        call, peer = StreamedCall(context, None, WRITE_TIMEOUT_S), context.peer()
        try:
            service = await self._read_service(context)
            with self._watch_counted(peer):
                await self._response_streams.send(call, self._statuses(service))
        except SyncbeatError as fault:
            await abort(context, fault, _request_id())

    async def _read_service(self, context: Context) -> str:
        data = decompress(await self._requests.read(context, _is_known), MAX_PUBLIC_BYTES)
        if fault := public_request_fault(data):
            raise InvalidRequest(fault)
        try:
            return str(health_pb2.HealthCheckRequest.FromString(data).service)
        except (DecodeError, UnicodeDecodeError, ValueError):
            raise InvalidRequest(
                FieldViolation("", "these bytes are not a HealthCheckRequest", FieldReason.MALFORMED)
            ) from None

    @contextmanager
    def _watch_counted(self, peer: str) -> Iterator[None]:
        watches = self._watches_by_peer
        if watches[peer] >= MAX_WATCHES_PER_CONNECTION or watches.total() >= self._max_watches:
            raise Overloaded("too many watch the health of this server", retry_after_s=_RETRY_AFTER_S)
        watches[peer] += 1
        try:
            yield
        finally:
            watches[peer] -= 1
            if not watches[peer]:
                del watches[peer]

    async def _statuses(self, service: str) -> AsyncGenerator[bytes, None]:
        """Yield the newest status whenever it differs from the last one sent, until the server drains."""
        changed, sent = asyncio.Event(), None
        self._changed.add(changed)
        try:
            while True:
                changed.clear()
                status = self._status.get(service, _UNKNOWN)
                if status != sent:
                    sent = status
                    yield _answer(status)
                elif self._draining:
                    return
                else:
                    await changed.wait()
        finally:
            self._changed.discard(changed)


def _is_known(_context: Context) -> bool:
    return False  # health is public


def _answer(status: int) -> bytes:
    return bytes(health_pb2.HealthCheckResponse(status=status).SerializeToString())


def _request_id() -> str:
    return f"health-{next(_numbers):x}"
