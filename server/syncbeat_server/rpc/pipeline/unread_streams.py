"""Sends the messages of streams, and ends streams whose client does not read.

A client that opens no HTTP/2 window blocks the message on its way, and behind it the status that would end the call. So
a message that has waited for more than a second is checked each second. Once its caller is no longer let in, its time
is over or the server drains, the stream ends: with a status if the message goes out within another second, else by a
reset.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable, Sequence

import grpc

from syncbeat_server.errors import CallerStalled, DependencyDown, Overloaded, SyncbeatError

Context = grpc.aio.ServicerContext[bytes, bytes]
_log = logging.getLogger(__name__)

STALLED_S = 1.0
_SWEEP_S = 1.0
# The task in grpc.aio that waits for the end of a call; its name is the only way to find it.
_GRPC_CALL_TASK = "_schedule_rpc_coro"


class StreamedCall:
    """The state of a call that streams; made in the task of its handler.

    `check` raises the error to end with once the caller is no longer let in; None: no check. `write_timeout_s` bounds
    how long one message may wait; None: as long as the call goes on.
    """

    __slots__ = ("check", "context", "fault", "fault_at_s", "task", "write_started_s", "write_timeout_s")

    def __init__(
        self, context: Context, check: Callable[[], Awaitable[None]] | None, write_timeout_s: float | None = None
    ) -> None:
        self.context = context
        self.check = check
        self.write_timeout_s = write_timeout_s
        self.task = asyncio.current_task()
        self.fault: SyncbeatError | None = None
        self.write_started_s = self.fault_at_s = 0.0


class ResponseStreams:
    """Sends the streams of one server and watches those that are blocked."""

    def __init__(self) -> None:
        self.open = 0
        """Streams that are open now."""
        self.sent = 0
        """Messages sent since the start."""
        self._writing: dict[StreamedCall, None] = {}
        self._sweeping = False
        self._checking: asyncio.Task[None] | None = None
        self._draining = False

    def drain(self) -> None:
        """End streams from here on whose clients do not read."""
        self._draining = True

    async def send(self, call: StreamedCall, messages: AsyncGenerator[bytes, None]) -> None:
        """Send all messages in order, and close their generator.

        Raises:
            SyncbeatError: the client did not read for a while, and the call is to end with this.
            CancelledError: the client does not read, and the call has been reset.
        """
        now_s, write, writing = asyncio.get_running_loop().time, call.context.write, self._writing
        self.open += 1
        try:
            async for message in messages:
                call.write_started_s = now_s()
                writing[call] = None
                if not self._sweeping:
                    self._schedule_sweep()
                await write(message)
                self.sent += 1
                del writing[call]
                if call.fault is not None:
                    raise call.fault
        finally:
            self.open -= 1
            writing.pop(call, None)
            await messages.aclose()

    def _schedule_sweep(self) -> None:
        self._sweeping = True
        # In an empty context, so that log lines of the sweep carry no call's request id.
        asyncio.get_running_loop().call_later(_SWEEP_S, self._sweep, context=contextvars.Context())

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        stalled = [call for call in self._writing if now_s - call.write_started_s >= STALLED_S]
        _reset([call for call in stalled if call.fault is not None and now_s - call.fault_at_s >= STALLED_S])
        unchecked = [call for call in stalled if call.fault is None]
        if unchecked and (self._checking is None or self._checking.done()):
            self._checking = loop.create_task(self._check_all(unchecked, now_s))
        self._sweeping = bool(self._writing)
        if self._sweeping:
            self._schedule_sweep()

    async def _check_all(self, stalled: Sequence[StreamedCall], now_s: float) -> None:
        faults = await asyncio.gather(*(self._fault(call, now_s) for call in stalled))
        for call, fault in zip(stalled, faults, strict=True):
            if fault is not None:
                call.fault, call.fault_at_s = fault, now_s

    async def _fault(self, call: StreamedCall, now_s: float) -> SyncbeatError | None:
        """Return the error that a stalled call has to end with; None if it goes on."""
        if self._draining:
            return CallerStalled("this server ends, and the client does not read")
        if call.write_timeout_s is not None and now_s - call.write_started_s >= call.write_timeout_s:
            return CallerStalled(f"the client has read nothing for {call.write_timeout_s:g} s")
        if call.check is not None:
            try:
                await call.check()
            except (DependencyDown, Overloaded):
                return None  # unknown for now
            except SyncbeatError as fault:
                return fault.with_traceback(None)  # whose frames would keep the call alive
        return None


def _reset(calls: Collection[StreamedCall]) -> None:
    """Make gRPC reset the streams of these calls, which it does once nothing in Python refers to their state.

    It offers no other way to end a call before its status is sent, short of ending all calls of the server.
    """
    tasks = {call.task for call in calls}
    if not tasks:
        return
    found = 0
    for waiting in asyncio.all_tasks():
        coroutine = waiting.get_coro()
        if getattr(coroutine, "__qualname__", "").endswith(_GRPC_CALL_TASK) and tasks & _tasks_of(coroutine):
            waiting.cancel()
            found += 1
    for task in tasks:
        if task is not None:
            task.cancel()
    _log.info("reset calls whose clients do not read", extra={"calls": len(tasks), "found": found})


def _tasks_of(coroutine: object) -> set[asyncio.Task[object]]:
    held: Iterable[object] = (
        one for scope in gc.get_referents(coroutine) for one in gc.get_referents(scope) if isinstance(one, asyncio.Task)
    )
    return set(held)  # type: ignore[arg-type]  # all of them are tasks
