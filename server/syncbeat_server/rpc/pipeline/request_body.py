"""Reads the request of each call, and ends calls whose request does not arrive.

gRPC for Python reads a request before its handler runs, and waits for the rest of it for ever. So every method takes
its request as a stream of one message, which is the same on the wire, and reads it here. A request that arrives at once
costs an entry in a dict; those that stall are checked twice a second.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from weakref import WeakValueDictionary

import grpc

from syncbeat_server.errors import (
    CallerStalled,
    FieldReason,
    FieldViolation,
    InvalidRequest,
    RequestStalled,
    SyncbeatError,
)

Context = grpc.aio.ServicerContext[bytes, bytes]

READ_TIMEOUT_S = 10.0
"""The time within which a request has to arrive: as long as a call without a deadline of its own may take."""
STALLED_S = 1.0
"""The time after which an unfinished request counts as stalled: one retransmission of TCP is over by then."""
MAX_UNCHECKED_READS = 64
"""Requests on their way in this process, up to which nobody asks whose they are: most arrive at once, and to find out
costs each call 5 % of its time."""
MAX_CONCURRENT_READS = 4
"""Above that, requests of unauthenticated callers that are read at a time on a connection. The others wait for their
turn, so that other connections are served in between."""
MAX_STALLED_PER_CONNECTION, MAX_STALLED = 2, 64
"""Stalled requests of such callers, on a connection and in this process: at `MAX_REQUEST_BYTES` each, 80 MiB in all."""
MAX_KNOWN_STALLED_PER_CONNECTION, MAX_KNOWN_STALLED = 64, 256
"""The same for authenticated callers: a proxy has those of many phones, some of them in a tunnel, on one connection."""
_SWEEP_S = 0.5


IsKnown = Callable[[Context], bool]
"""Tells if the caller of a call is authenticated."""

_Arrival = tuple[float, "asyncio.Task[object] | None", IsKnown, SyncbeatError | None]
# When a request began to arrive, the task that reads it, what tells if its caller is known, and what it is ended with.


class RequestReader:
    """Reads the requests of one server and bounds those that stall."""

    def __init__(self) -> None:
        self._incoming: dict[Context, _Arrival] = {}  # oldest first
        self._turns: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._sweeping = False

    async def read(self, context: Context, is_known: IsKnown, *, in_turn: bool = False) -> bytes:
        """Return the request of a call; `is_known` tells if its caller is authenticated, and is asked only if it
        matters. `in_turn`: it has waited for those before it on its connection.

        Raises:
            RequestStalled: it did not arrive within 10 s.
            InvalidRequest: the call has none.
            CallerStalled: too many others stall on its connection, or in this process.
        """
        if len(self._incoming) >= MAX_UNCHECKED_READS and not (in_turn or is_known(context)):
            return await self._read_in_turn(context, is_known)
        if not self._sweeping:
            self._sweeping = True
            self._loop = asyncio.get_running_loop()  # kept, since it costs half a microsecond to ask for it
            self._sweep_later(self._loop)
        self._incoming[context] = self._loop.time(), asyncio.current_task(self._loop), is_known, None
        try:
            data: object = await context.read()
        except asyncio.CancelledError:
            _, task, _, fault = self._incoming[context]
            if fault is None or task is None:
                raise
            task.uncancel()
            raise fault from None
        finally:
            del self._incoming[context]
        if not isinstance(data, bytes):
            await asyncio.sleep(0)  # a call that was reset looks the same until its cancellation arrives
            if context.cancelled():
                raise asyncio.CancelledError
            raise InvalidRequest(
                FieldViolation("", "a call has one request, and this one has none", FieldReason.MALFORMED)
            )
        return data

    async def _read_in_turn(self, context: Context, is_known: IsKnown) -> bytes:
        peer = context.peer()
        turns = self._turns.get(peer)
        if turns is None:
            turns = self._turns[peer] = asyncio.Semaphore(MAX_CONCURRENT_READS)
        async with turns:
            return await self.read(context, is_known, in_turn=True)

    def _sweep_later(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.call_later(_SWEEP_S, self._sweep, loop.time() + _SWEEP_S)

    def _sweep(self, due_s: float) -> None:
        loop = asyncio.get_running_loop()
        now_s, stalled = loop.time(), []
        if now_s - due_s > STALLED_S:  # this process stalled: what has arrived meanwhile is yet to be read
            self._sweep_later(loop)
            return
        for context, (started_s, _, is_known, _) in self._incoming.items():
            if now_s - started_s < STALLED_S:
                break
            stalled.append((context, now_s - started_s, is_known))
        counts: Counter[tuple[bool, str]] = Counter()
        for context, taken_s, is_known in reversed(stalled):  # so that the oldest find no room and are cancelled first
            if taken_s >= READ_TIMEOUT_S:
                self._cancel(context, RequestStalled(f"the request did not arrive within {READ_TIMEOUT_S:g} s"))
            elif not _has_room(context.peer(), is_known(context), counts):
                self._cancel(context, CallerStalled("too many requests are on their way that do not arrive"))
        self._sweeping = bool(self._incoming)
        if self._sweeping:
            self._sweep_later(loop)

    def _cancel(self, context: Context, fault: SyncbeatError) -> None:
        """Make `read` raise this fault."""
        started_s, task, is_known, cancelled = self._incoming[context]
        if task is not None and cancelled is None:
            self._incoming[context] = started_s, task, is_known, fault
            task.cancel()


def _has_room(peer: str, known: bool, counts: Counter[tuple[bool, str]]) -> bool:
    per_connection, per_process = (
        (MAX_KNOWN_STALLED_PER_CONNECTION, MAX_KNOWN_STALLED) if known else (MAX_STALLED_PER_CONNECTION, MAX_STALLED)
    )
    here, anywhere = (known, peer), (known, "")
    if counts[here] >= per_connection or counts[anywhere] >= per_process:
        return False
    counts[here] += 1
    counts[anywhere] += 1
    return True
