"""Group commit for the stores: concurrent calls become one statement, one transaction.

How calls come together, `gathering.py` says. What arrives while `lanes` batches are under way waits for the next one;
the second lane is for a batch that is slow, or for more calls than one batch takes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from typing import Generic, TypeVar

from syncbeat_server.errors import DependencyDown, Overloaded, SyncbeatError
from syncbeat_server.gathering import Gathering

Item = TypeVar("Item")
Answer = TypeVar("Answer")

_SLOW_S = 0.01


class Batcher(Generic[Item, Answer]):
    """Runs `work(items)` for many callers at once.

    `work` answers each item in order: a value, or an exception that only this item's caller gets. When `work` itself
    raises, the items are run again one by one, so that one caller's fault is never another's; an unreachable
    dependency is everyone's and is not tried again.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Item]], Awaitable[Sequence[Answer | Exception]]],
        *,
        max_batch: int = 256,
        max_waiting: int = 20_000,
        lanes: int = 2,
    ) -> None:
        self._work = work
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._lanes = lanes
        self._waiting: list[tuple[Item, asyncio.Future[Answer]]] = []
        self._running: set[asyncio.Task[DependencyDown | None]] = set()
        self._is_gathering = False
        self._gathering = Gathering(lambda: len(self._waiting), max_batch, self._start)
        self._late: asyncio.TimerHandle | None = None

    async def submit(self, item: Item) -> Answer:
        """The answer for `item`. A caller that is cancelled leaves the batch running.

        Raises:
            Overloaded: too many calls wait already.
        """
        if len(self._waiting) >= self._max_waiting:
            raise Overloaded("too many calls wait for the database")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()
        self._waiting.append((item, future))
        if not self._is_gathering and len(self._running) < self._lanes:
            self._is_gathering = True
            if self._running:
                self._late = loop.call_later(_SLOW_S, self._start)
            else:
                self._gathering.begin()
        elif self._late is not None and len(self._waiting) >= self._max_batch:
            self._start()
        return await future

    async def drain(self) -> None:
        """Return when everything submitted so far was answered."""
        while self._running or self._waiting:
            if not self._running:
                self._start()
            await asyncio.wait(set(self._running))

    def _start(self) -> None:
        self._end_gathering()
        while self._waiting and len(self._running) < self._lanes:
            batch = self._waiting[: self._max_batch]
            del self._waiting[: self._max_batch]
            self._gathering.served(len(batch))
            task = asyncio.get_running_loop().create_task(self._run(batch), context=Context())  # nobody's
            self._running.add(task)
            task.add_done_callback(self._ended)

    def _end_gathering(self) -> None:
        self._is_gathering = False
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _ended(self, task: asyncio.Task[DependencyDown | None]) -> None:
        self._running.discard(task)
        if self._waiting:
            self._end_gathering()
            self._is_gathering = True
            self._gathering.look()

    async def _run(self, batch: Sequence[tuple[Item, asyncio.Future[Answer]]]) -> DependencyDown | None:
        # The answer is why the batch could not be asked for at all.
        live = [(item, future) for item, future in batch if not future.done()]
        if not live:
            return None
        try:
            answers = await self._work([item for item, _ in live])
            answered = list(zip(live, answers, strict=True))
        except DependencyDown as error:
            for _, future in live:
                _settle(future, error)
            return error
        except Exception as error:  # noqa: BLE001  # each item's own fault is found by running it alone
            if len(live) == 1:
                _settle(live[0][1], error)
                return None
            return await self._run_singly(live)
        except BaseException as error:
            for _, future in live:
                _settle(future, SyncbeatError("the batch was cancelled"))
            raise error
        for (_, future), answer in answered:
            _settle(future, answer)
        return None

    async def _run_singly(self, live: Sequence[tuple[Item, asyncio.Future[Answer]]]) -> DependencyDown | None:
        for number, pair in enumerate(live):
            down = await self._run([pair])
            if down is not None:
                for _, future in live[number:]:
                    _settle(future, down)
                return down
        return None


def _settle(future: asyncio.Future[Answer], answer: Answer | Exception) -> None:
    if future.done():
        return
    if isinstance(answer, Exception):
        future.set_exception(answer)
    else:
        future.set_result(answer)
