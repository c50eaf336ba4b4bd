"""Serves calls that come together one right after the other.

Between calls that are served as they come, gRPC reads, writes and wakes its threads, and each time the processor has to
fetch our code and values anew. Served in a row they take half the time, and gRPC's part a third less.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from syncbeat_server.gathering import Gathering

_MOST = 32
"""Calls in a row: nothing else runs meanwhile, so that they are kept to a few milliseconds."""

Answer = TypeVar("Answer")


class Together:
    """The calls of one loop that wait to be served in a row."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Callable[[], Any], asyncio.Future[Any]]] = []
        self._gathering = Gathering(lambda: len(self._waiting), _MOST, self._serve)

    async def serve(self, work: Callable[[], Answer]) -> Answer:
        """What `work` answers, or raises, when it is its turn. It is not called when the caller has gone by then.

        It runs in nobody's task and context: whatever it needs of its call's it has to be given.
        """
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((work, future))
        if len(self._waiting) == 1:
            self._gathering.begin()
        try:
            return await future
        finally:
            del work, future  # what is raised holds this frame: so it does not hold itself

    def _serve(self) -> None:
        row, self._waiting = self._waiting[:_MOST], self._waiting[_MOST:]
        self._gathering.served(len(row))
        if self._waiting:
            self._gathering.begin()
        row.reverse()
        while row:
            _settle(*row.pop())  # so that what one of them raises, which holds this frame too, holds no other call


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
