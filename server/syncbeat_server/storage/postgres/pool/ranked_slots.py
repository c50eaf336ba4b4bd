"""Shares a number of slots between callers by rank: while all are taken, who may wait least gets the next one.

Each fourth slot goes to whoever has waited longest, whatever the rank, so that a steady load starves nobody.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import NamedTuple

from syncbeat_server.ops.work_origin import WorkRank

_OLDEST_EVERY = 4


class _Waiter(NamedTuple):
    number: int
    turn: asyncio.Future[None]


class RankedSlots:
    """Slots of one event loop."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._numbers = self._handed_over = 0
        self._queues: dict[WorkRank, deque[_Waiter]] = {rank: deque() for rank in sorted(WorkRank, reverse=True)}

    async def take(self, rank: WorkRank, wait_s: float) -> bool:
        """Take a slot, the caller's own until `give_back`; return False if none was free for `wait_s` seconds."""
        if self._free:
            self._free -= 1
            return True
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._numbers += 1
        self._queues[rank].append(_Waiter(self._numbers, turn))
        try:
            await asyncio.wait([turn], timeout=wait_s)
        except asyncio.CancelledError:
            if turn.done():
                self.give_back()
            turn.cancel()
            raise
        # A future that nobody waits for is passed over and dropped when its turn comes.
        return not turn.cancel()

    def give_back(self) -> None:
        """Hand a slot over to the next who waits, if there is one."""
        next_one = self._next()
        if next_one is None:
            self._free += 1
        else:
            self._handed_over += 1
            next_one.set_result(None)

    def _next(self) -> asyncio.Future[None] | None:
        queues = [queue for queue in self._queues.values() if _drop_cancelled(queue)]
        if not queues:
            return None
        by_age = self._handed_over % _OLDEST_EVERY == _OLDEST_EVERY - 1
        queue = min(queues, key=lambda queue: queue[0].number) if by_age else queues[0]
        return queue.popleft().turn


def _drop_cancelled(queue: deque[_Waiter]) -> bool:
    """Drop who waits no longer from the head of a queue; return True if somebody is left."""
    while queue and queue[0].turn.done():
        queue.popleft()
    return bool(queue)
