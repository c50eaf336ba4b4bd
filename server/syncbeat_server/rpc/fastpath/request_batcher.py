"""Serves calls that come together one right after the other.

Between calls that are served as they come, gRPC reads, writes and wakes its threads, and each time the processor has to
fetch our code and values anew. Served in a row they take half the time, and gRPC's part a third less.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from syncbeat_server.runtime.adaptive_batching import BatchTrigger

_MOST, _LONGEST_S = 32, 0.005
"""Calls in a row, and seconds after which no other one begins: nothing else runs meanwhile."""

Answer = TypeVar("Answer")


class Together:
    """The calls of one loop that wait to be served in a row."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Callable[[], Any], asyncio.Future[Any]]] = deque()
        self._gathering = BatchTrigger(lambda: len(self._waiting), _MOST, self._serve)

    async def serve(self, work: Callable[[], Answer]) -> Answer:
        """What `work` answers, or raises, when it is its turn. It is not called when the caller has gone by then.

        It runs in nobody's task and context: whatever it needs of its call's it has to be given.
        """
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((work, future))
        if len(self._waiting) == 1:
            self._gathering.arm()
        try:
            return await future
        finally:
            del work, future  # what is raised holds this frame: so it does not hold itself

    def _serve(self) -> None:
        time, served = asyncio.get_running_loop().time, 0
        until = time() + _LONGEST_S
        while self._waiting and served < _MOST and (not served or time() < until):
            _settle(*self._waiting.popleft())  # so that what it raises, which holds this frame, holds no other call
            served += 1
        self._gathering.record_batch(served)
        if self._waiting:
            self._gathering.arm()


def _settle(work: Callable[[], Any], future: asyncio.Future[Any]) -> None:
    if future.done():
        return
    try:
        future.set_result(work())
    except StopIteration as error:  # which no future takes; as of a coroutine
        future.set_exception(RuntimeError(repr(error)).with_traceback(error.__traceback__))
    except BaseException as error:  # noqa: BLE001  # whatever it is, it is its caller's, and the others are not to wait
        future.set_exception(error)
    finally:
        del work, future
