"""Group commit for the stores: concurrent calls become one statement, one transaction.

How calls come together, `gathering.py` says. What arrives while `lanes` batches are under way waits for the next one;
the second lane is for a batch that is slow, or for more calls than one batch takes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextvars import Context
from typing import Any, Generic, TypeVar

from syncbeat_server.errors import DependencyDown, Overloaded, SyncbeatError
from syncbeat_server.runtime.adaptive_batching import BatchTrigger
from syncbeat_server.storage.postgres.database import TooSlow

Item = TypeVar("Item")
Answer = TypeVar("Answer")

_SLOW_S = 0.01
# Of a pool of ten connections and more, so that others get theirs.
_MAX_ALONE = 4


class Batcher(Generic[Item, Answer]):
    """Runs `work(items)` for many callers at once.

    `work` answers each item in order: a value, or an exception that only this item's caller gets. When `work` itself
    raises, the items are run again one by one, so that one caller's fault is never another's; an unreachable
    dependency is everyone's and is not tried again. Items of a batch that took too long (`TooSlow`) run alone and side
    by side, since one of them may take as long again.

    `patience_s`, for work that may be begun twice: a batch that takes longer is given up, and its items run alone.
    `abandons`: a batch of which every caller has left is cancelled.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Item]], Awaitable[Sequence[Answer | Exception]]],
        *,
        max_batch: int = 256,
        max_waiting: int = 20_000,
        lanes: int = 2,
        patience_s: float | None = None,
        abandons: bool = False,
    ) -> None:
        self._work = work
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._lanes = lanes
        self._patience_s = patience_s
        self._abandons = abandons
        self._waiting: list[tuple[Item, asyncio.Future[Answer]]] = []
        self._running: set[asyncio.Task[DependencyDown | None]] = set()
        self._alone: set[asyncio.Task[DependencyDown | None]] = set()
        self._places_alone = asyncio.Semaphore(_MAX_ALONE)
        self._is_gathering = False
        self._gathering = BatchTrigger(lambda: len(self._waiting), max_batch, self._start)
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
                self._gathering.arm()
        elif self._late is not None and len(self._waiting) >= self._max_batch:
            self._start()
        return await future

    async def drain(self) -> None:
        """Return when everything submitted so far was answered."""
        while self._running or self._waiting or self._alone:
            if not self._running:
                self._start()
            await asyncio.wait(self._running | self._alone)

    def _start(self) -> None:
        self._end_gathering()
        while self._waiting and len(self._running) < self._lanes:
            batch = self._waiting[: self._max_batch]
            del self._waiting[: self._max_batch]
            self._gathering.record_batch(len(batch))
            task = self._begin(self._run(batch), batch)
            self._running.add(task)
            task.add_done_callback(self._ended)

    def _begin(
        self, work: Coroutine[Any, Any, DependencyDown | None], batch: Sequence[tuple[Item, asyncio.Future[Answer]]]
    ) -> asyncio.Task[DependencyDown | None]:
        task = asyncio.get_running_loop().create_task(work, context=Context())  # nobody's
        if self._abandons:
            _cancel_when_all_left(task, [future for _, future in batch])
        return task

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
            self._gathering.check()

    async def _run(self, batch: Sequence[tuple[Item, asyncio.Future[Answer]]]) -> DependencyDown | None:
        # The answer is why the batch could not be asked for at all.
        live = [(item, future) for item, future in batch if not future.done()]
        if not live:
            return None
        try:
            # A single one has the whole time that a statement may take.
            async with asyncio.timeout(self._patience_s if len(live) > 1 else None):
                answers = await self._work([item for item, _ in live])
            answered = list(zip(live, answers, strict=True))
        except (TooSlow, TimeoutError) as error:
            if len(live) > 1:
                self._run_apart(live)
                return None
            _settle(live[0][1], error)
            return None
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

    def _run_apart(self, live: Sequence[tuple[Item, asyncio.Future[Answer]]]) -> None:
        # Beside the lanes, which are for the others.
        for pair in live:
            self._begin_alone(self._run_alone(pair), pair)

    def _begin_alone(
        self, work: Coroutine[Any, Any, DependencyDown | None], pair: tuple[Item, asyncio.Future[Answer]]
    ) -> asyncio.Task[DependencyDown | None]:
        task = self._begin(work, [pair])
        self._alone.add(task)
        task.add_done_callback(self._alone.discard)
        return task

    async def _run_alone(self, pair: tuple[Item, asyncio.Future[Answer]]) -> DependencyDown | None:
        async with self._places_alone:
            return await self._run([pair])

    async def _run_singly(self, live: Sequence[tuple[Item, asyncio.Future[Answer]]]) -> DependencyDown | None:
        for number, pair in enumerate(live):
            # A task of its own, which ends with its caller, though others of the batch have not left.
            one = self._begin_alone(self._run([pair]), pair)
            try:
                await asyncio.wait([one])
            finally:
                one.cancel()
            down = None if one.cancelled() else one.result()
            if down is not None:
                for _, future in live[number:]:
                    _settle(future, down)
                return down
        return None


def _cancel_when_all_left(task: asyncio.Task[Any], futures: Sequence[asyncio.Future[Answer]]) -> None:
    here = len(futures)

    def left(future: asyncio.Future[Answer]) -> None:
        nonlocal here
        here -= future.cancelled()
        if not here:
            task.cancel()

    for future in futures:
        future.add_done_callback(left)


def _settle(future: asyncio.Future[Answer], answer: Answer | Exception) -> None:
    if future.done():
        return
    if isinstance(answer, Exception):
        future.set_exception(answer)
    else:
        future.set_result(answer)
