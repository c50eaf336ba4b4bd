"""Reads the request of each call, and ends calls whose request does not arrive.

gRPC for Python reads a request before its handler runs, and waits for the rest of it for ever. So every method takes
its request as a stream of one message, which is the same on the wire, and reads that here. A request that arrives at
once costs an entry in a dict; those that do not are looked at twice a second.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from weakref import WeakValueDictionary

import grpc

from syncbeat_server.errors import DeadlineExceeded, FieldViolation, InvalidRequest, Overloaded, SyncbeatError

Context = grpc.aio.ServicerContext[bytes, bytes]

BODY_S = 10.0
"""Within which a request has to arrive: as long as a call without a deadline of its own may take."""
STALLED_S = 1.0
"""After which a request that has not arrived counts as stalled: one retransmission of TCP is over by then."""
AT_A_TIME = 4
"""Requests of callers that are not known which are read at a time on a connection: the others wait for their turn, and
who is on other connections is served in between. To decompress 1.3 MB costs as much as twenty calls."""
MOST_OF_CONNECTION, MOST_OF_PROCESS = 2, 64
"""Stalled requests of such callers. Each may hold `MAX_REQUEST_BYTES`: 80 MiB in all."""
MOST_KNOWN_OF_CONNECTION, MOST_KNOWN_OF_PROCESS = 64, 256
"""The same of callers that are known: a proxy has those of many phones, some of them in a tunnel, on one connection."""
_LOOK_S = 0.5


class _Body:
    """A request on its way."""

    __slots__ = ("began_s", "context", "fault", "known", "peer", "task")

    def __init__(self, context: Context, peer: str, began_s: float, *, known: bool) -> None:
        self.context = context
        self.peer = peer
        self.began_s = began_s
        self.known = known
        self.task = asyncio.current_task()
        self.fault: SyncbeatError | None = None

    def end(self, fault: SyncbeatError) -> None:
        """Have `read` raise this."""
        if self.fault is None and self.task is not None:
            self.fault = fault
            self.task.cancel()


class Bodies:
    """The requests on their way to one server."""

    def __init__(self) -> None:
        self._coming: dict[_Body, None] = {}  # in the order in which they began
        self._turns: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._looking = False

    async def read(self, context: Context, *, known: bool) -> bytes:
        """Returns the request of a call. `known`: so is its caller.

        Raises:
            DeadlineExceeded: it did not arrive within 10 s.
            InvalidRequest: the call has none.
            Overloaded: too many others stall on its connection, or in this process.
        """
        if known:
            return await self._read(context, "", known=True)
        peer = context.peer()
        turns = self._turns.get(peer)
        if turns is None:
            turns = self._turns[peer] = asyncio.Semaphore(AT_A_TIME)
        async with turns:
            return await self._read(context, peer, known=False)

    async def _read(self, context: Context, peer: str, *, known: bool) -> bytes:
        loop = asyncio.get_running_loop()
        body = _Body(context, peer, loop.time(), known=known)
        self._coming[body] = None
        if not self._looking:
            self._looking = True
            loop.call_later(_LOOK_S, self._look)
        try:
            data: object = await context.read()
        except asyncio.CancelledError:
            if body.fault is None or body.task is None:
                raise
            body.task.uncancel()
            raise body.fault from None
        finally:
            del self._coming[body]
        if not isinstance(data, bytes):
            await asyncio.sleep(0)  # a call that was reset looks alike until its cancellation arrives
            if context.cancelled():
                raise asyncio.CancelledError
            raise InvalidRequest(FieldViolation("", "a call has one request, and this one has none"))
        return data

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        now_s, stalled = loop.time(), []
        for body in self._coming:
            if now_s - body.began_s < STALLED_S:
                break
            stalled.append(body)
        counts: Counter[tuple[bool, str]] = Counter()
        for body in reversed(stalled):  # those that wait for longest go first
            if now_s - body.began_s >= BODY_S:
                body.end(DeadlineExceeded(f"the request did not arrive within {BODY_S:g} s"))
            elif not _has_room(body, counts):
                body.end(Overloaded("too many requests are on their way that do not arrive"))
        self._looking = bool(self._coming)
        if self._looking:
            loop.call_later(_LOOK_S, self._look)


def _has_room(body: _Body, counts: Counter[tuple[bool, str]]) -> bool:
    of_connection, of_process = (
        (MOST_KNOWN_OF_CONNECTION, MOST_KNOWN_OF_PROCESS) if body.known else (MOST_OF_CONNECTION, MOST_OF_PROCESS)
    )
    body.peer = body.peer or body.context.peer()
    here, anywhere = (body.known, body.peer), (body.known, "")
    if counts[here] >= of_connection or counts[anywhere] >= of_process:
        return False
    counts[here] += 1
    counts[anywhere] += 1
    return True
