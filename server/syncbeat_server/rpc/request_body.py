"""Reads the request of each call, and ends calls whose request does not arrive.

gRPC for Python reads a request before its handler runs, and waits for the rest of it for ever. So every method takes
its request as a stream of one message, which is the same on the wire, and reads it here. A request that arrives at once
costs an entry in a dict; those that stall are checked twice a second.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable
from weakref import WeakValueDictionary

import grpc

from syncbeat_server.errors import (
    DeadlineExceeded,
    FieldReason,
    FieldViolation,
    InvalidRequest,
    Overloaded,
    SyncbeatError,
)

Context = grpc.aio.ServicerContext[bytes, bytes]

READ_TIMEOUT_S = 10.0
"""The time within which a request has to arrive: as long as a call without a deadline of its own may take."""
STALLED_S = 1.0
"""The time after which an unfinished request counts as stalled: one retransmission of TCP is over by then."""
MAX_CONCURRENT_READS = 4
"""Requests of unauthenticated callers that are read at a time on a connection. The others wait for their turn, so that
other connections are served in between: to decompress 1.3 MB costs as much as twenty calls."""
MAX_STALLED_PER_CONNECTION, MAX_STALLED = 2, 64
"""Stalled requests of such callers, on a connection and in this process: at `MAX_REQUEST_BYTES` each, 80 MiB in all."""
MAX_KNOWN_STALLED_PER_CONNECTION, MAX_KNOWN_STALLED = 64, 256
"""The same for authenticated callers: a proxy has those of many phones, some of them in a tunnel, on one connection."""
_SWEEP_S = 0.5


class _IncomingRequest:
    """A request on its way."""

    __slots__ = ("context", "fault", "known", "peer", "started_s", "task")

    def __init__(self, context: Context, peer: str, started_s: float, *, known: bool) -> None:
        self.context = context
        self.peer = peer
        self.started_s = started_s
        self.known = known
        self.task = asyncio.current_task()
        self.fault: SyncbeatError | None = None

    def cancel(self, fault: SyncbeatError) -> None:
        """Make `read` raise this fault."""
        if self.fault is None and self.task is not None:
            self.fault = fault
            self.task.cancel()


class RequestReader:
    """Reads the requests of one server and bounds those that stall."""

    def __init__(self) -> None:
        self._incoming: dict[_IncomingRequest, None] = {}  # oldest first
        self._turns: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._sweeping = False

    def read(self, context: Context, *, known: bool) -> Awaitable[bytes]:
        """Return the request of a call; `known` if its caller is authenticated.

        Raises:
            DeadlineExceeded: it did not arrive within 10 s.
            InvalidRequest: the call has none.
            Overloaded: too many others stall on its connection, or in this process.
        """
        return self._read(context, "", known=True) if known else self._read_in_turn(context)

    async def _read_in_turn(self, context: Context) -> bytes:
        peer = context.peer()
        turns = self._turns.get(peer)
        if turns is None:
            turns = self._turns[peer] = asyncio.Semaphore(MAX_CONCURRENT_READS)
        async with turns:
            return await self._read(context, peer, known=False)

    async def _read(self, context: Context, peer: str, *, known: bool) -> bytes:
        loop = asyncio.get_running_loop()
        request = _IncomingRequest(context, peer, loop.time(), known=known)
        self._incoming[request] = None
        if not self._sweeping:
            self._sweeping = True
            loop.call_later(_SWEEP_S, self._sweep)
        try:
            data: object = await context.read()
        except asyncio.CancelledError:
            if request.fault is None or request.task is None:
                raise
            request.task.uncancel()
            raise request.fault from None
        finally:
            del self._incoming[request]
        if not isinstance(data, bytes):
            await asyncio.sleep(0)  # a call that was reset looks the same until its cancellation arrives
            if context.cancelled():
                raise asyncio.CancelledError
            raise InvalidRequest(
                FieldViolation("", "a call has one request, and this one has none", FieldReason.MALFORMED)
            )
        return data

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        now_s, stalled = loop.time(), []
        for request in self._incoming:
            if now_s - request.started_s < STALLED_S:
                break
            stalled.append(request)
        counts: Counter[tuple[bool, str]] = Counter()
        for request in reversed(stalled):  # so that the oldest find no room and are cancelled first
            if now_s - request.started_s >= READ_TIMEOUT_S:
                request.cancel(DeadlineExceeded(f"the request did not arrive within {READ_TIMEOUT_S:g} s"))
            elif not _has_room(request, counts):
                request.cancel(Overloaded("too many requests are on their way that do not arrive"))
        self._sweeping = bool(self._incoming)
        if self._sweeping:
            loop.call_later(_SWEEP_S, self._sweep)


def _has_room(request: _IncomingRequest, counts: Counter[tuple[bool, str]]) -> bool:
    per_connection, per_process = (
        (MAX_KNOWN_STALLED_PER_CONNECTION, MAX_KNOWN_STALLED)
        if request.known
        else (MAX_STALLED_PER_CONNECTION, MAX_STALLED)
    )
    request.peer = request.peer or request.context.peer()
    here, anywhere = (request.known, request.peer), (request.known, "")
    if counts[here] >= per_connection or counts[anywhere] >= per_process:
        return False
    counts[here] += 1
    counts[anywhere] += 1
    return True
