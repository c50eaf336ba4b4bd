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
        return await future

    def _serve(self) -> None:
        served, self._waiting = self._waiting, []
        self._gathering.served(len(served))
        for work, future in served:
            if future.done():
                continue
            try:
                answer = work()
            except Exception as error:  # noqa: BLE001  # it is the caller's
                future.set_exception(error)
            else:
                future.set_result(answer)
