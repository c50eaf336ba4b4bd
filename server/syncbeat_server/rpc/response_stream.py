"""Sends the messages of streams, and ends streams whose client does not read.

A client that opens no HTTP/2 window blocks the message on its way, and behind it the status that would end the call. So
whoever waits for longer than a second is looked at each second. When its caller is no longer let in, its time is over
or the server ends, its stream ends: with a status where the message goes out within another second, else by a reset.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable, Sequence

import grpc

from syncbeat_server.errors import DependencyDown, Overloaded, SyncbeatError

Context = grpc.aio.ServicerContext[bytes, bytes]
_log = logging.getLogger(__name__)

STALLED_S = 1.0
_LOOK_S = 1.0
# Of grpc.aio: the task that waits for the end of a call, and by its name the only way to that.
_CALL_TASK = "_schedule_rpc_coro"


class Outgoing:
    """The messages of one call. Made in the task of its handler.

    `check` raises what the call is to end with when its caller is no longer let in; None: it needs none. `patience_s`
    is for how long one message may wait; None: for as long as the call goes on.
    """

    __slots__ = ("began_s", "check", "context", "doomed_s", "fault", "patience_s", "task")

    def __init__(
        self, context: Context, check: Callable[[], Awaitable[None]] | None, patience_s: float | None = None
    ) -> None:
        self.context = context
        self.check = check
        self.patience_s = patience_s
        self.task = asyncio.current_task()
        self.fault: SyncbeatError | None = None
        self.began_s = self.doomed_s = 0.0


class Answers:
    """The messages on their way from one server."""

    def __init__(self) -> None:
        self._writing: dict[Outgoing, None] = {}
        self._looking = False
        self._judging: asyncio.Task[None] | None = None
        self._draining = False

    def drain(self) -> None:
        """Wait for no client any more that does not read."""
        self._draining = True

    async def send(self, outgoing: Outgoing, messages: AsyncGenerator[bytes, None]) -> None:
        """Send all messages, one after the other, and close what makes them.

        Raises:
            SyncbeatError: the client did not read for a while, and the call is to end with this.
            CancelledError: it does not read, and the call has been reset.
        """
        now_s, write, writing = asyncio.get_running_loop().time, outgoing.context.write, self._writing
        try:
            async for message in messages:
                outgoing.began_s = now_s()
                writing[outgoing] = None
                if not self._looking:
                    self._look_later()
                await write(message)
                del writing[outgoing]
                if outgoing.fault is not None:
                    raise outgoing.fault
        finally:
            writing.pop(outgoing, None)
            await messages.aclose()

    def _look_later(self) -> None:
        self._looking = True
        # In nobody's context: what is logged there belongs to no call.
        asyncio.get_running_loop().call_later(_LOOK_S, self._look, context=contextvars.Context())

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        stalled = [one for one in self._writing if now_s - one.began_s >= STALLED_S]
        _reset([one for one in stalled if one.fault is not None and now_s - one.doomed_s >= STALLED_S])
        judged = [one for one in stalled if one.fault is None]
        if judged and (self._judging is None or self._judging.done()):
            self._judging = loop.create_task(self._judge_all(judged, now_s))
        self._looking = bool(self._writing)
        if self._looking:
            self._look_later()

    async def _judge_all(self, stalled: Sequence[Outgoing], now_s: float) -> None:
        faults = await asyncio.gather(*(self._fault(one, now_s) for one in stalled))
        for one, fault in zip(stalled, faults, strict=True):
            if fault is not None:
                one.fault, one.doomed_s = fault, now_s

    async def _fault(self, outgoing: Outgoing, now_s: float) -> SyncbeatError | None:
        """Return the error that is to end a stalled call; None: it goes on."""
        if self._draining:
            return Overloaded("this server ends, and the client does not read")
        if outgoing.patience_s is not None and now_s - outgoing.began_s >= outgoing.patience_s:
            return Overloaded(f"the client has read nothing for {outgoing.patience_s:g} s")
        if outgoing.check is not None:
            try:
                await outgoing.check()
            except DependencyDown:
                return None  # it cannot be known now
            except SyncbeatError as fault:
                return fault.with_traceback(None)  # whose frames would hold on to the call
        return None


def _reset(calls: Collection[Outgoing]) -> None:
    """Have gRPC reset the streams of these calls, which it does once nothing in Python holds on to their state.

    It has no other way to end a call before its status is sent, but to end all calls of the server.
    """
    tasks = {one.task for one in calls}
    if not tasks:
        return
    found = 0
    for waiting in asyncio.all_tasks():
        coroutine = waiting.get_coro()
        if getattr(coroutine, "__qualname__", "").endswith(_CALL_TASK) and tasks & _tasks_of(coroutine):
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
