"""Batches concurrent store calls into one statement in one transaction (group commit) (ADR 8).

`runtime/adaptive_batching.py` decides when a batch starts. Calls that arrive while `lanes` batches run wait for the
next one; the second lane is for a batch that is slow, or for more calls than one batch takes.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from syncbeat_server.errors import DependencyDown, SyncbeatError
from syncbeat_server.ops.tracing.spans import Span, SpanKind, current_span
from syncbeat_server.ops.work_origin import WorkOrigin, fresh_context, name_of, task_origin, work_origin
from syncbeat_server.runtime.adaptive_batching import BatchTrigger
from syncbeat_server.storage.postgres.driver_errors import StatementTimeout, TooManyWait

Item = TypeVar("Item")
Answer = TypeVar("Answer")

_Call = tuple[Item, asyncio.Future[Answer], WorkOrigin, Span | None]

_Failure = DependencyDown | TooManyWait | None
"""A failure of a batch that concerns every item, and not one of them."""
_MAX_ALONE = 4  # connections, of a pool's eight and more, so that other work gets some


@dataclass(frozen=True, slots=True)
class BatchRule:
    """Bounds of the batches of one `Batcher`.

    `lanes`: batches that run at a time. `slow_s`: after so many seconds the second lane serves those that wait.
    `patience_s`, for work that may run twice: a batch that takes longer is cancelled, and its items run alone.
    `abandons`: a batch whose callers have all left is cancelled.
    """

    max_batch: int = 256
    max_waiting: int = 20_000
    lanes: int = 2
    patience_s: float | None = None
    abandons: bool = False
    slow_s: float = 0.01


_RULE = BatchRule()


class Batcher(Generic[Item, Answer]):
    """Runs `work(items)` for many callers at once.

    `work` answers each item in order: a value, or an exception that only this item's caller gets. If `work` itself
    raises, the items run again one by one, so that one caller's fault is never another's; an unreachable dependency
    concerns everyone, and is not tried again. Nor is a batch that waited for a connection in vain (`TooManyWait`): each
    item would wait as long again, one after the other, long after its caller has gone (ADR 208). Items of a batch that
    took too long (`StatementTimeout`) run alone and side by side, since one of them may take as long again.
    """

    def __init__(
        self, work: Callable[[Sequence[Item]], Awaitable[Sequence[Answer | Exception]]], rule: BatchRule = _RULE
    ) -> None:
        self._work = work
        self._rule = rule
        self._name = name_of(work)
        self._waiting: list[_Call[Item, Answer]] = []
        self._running: set[asyncio.Task[_Failure]] = set()
        self._alone: set[asyncio.Task[_Failure]] = set()
        self._alone_slots = asyncio.Semaphore(_MAX_ALONE)
        self._is_collecting = False
        self._trigger = BatchTrigger(self._waiting, rule.max_batch, self._start)
        self._second_lane: asyncio.TimerHandle | None = None

    async def submit(self, item: Item) -> Answer:
        """Return the answer for `item`. The batch goes on if the caller is cancelled.

        Raises:
            Overloaded: too many calls wait already.
        """
        if len(self._waiting) >= self._rule.max_waiting:
            raise _shed()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()
        self._waiting.append((item, future, work_origin.get(), current_span.get()))
        if not self._is_collecting and len(self._running) < self._rule.lanes:
            self._is_collecting = True
            if self._running:
                self._second_lane = loop.call_later(self._rule.slow_s, self._start)
            else:
                self._trigger.arm()
        elif self._second_lane is not None and len(self._waiting) >= self._rule.max_batch:
            self._start()
        return await future

    async def drain(self) -> None:
        """Wait until every item submitted so far is answered."""
        while self._running or self._waiting or self._alone:
            if not self._running:
                self._start()
            await asyncio.wait(self._running | self._alone)

    def _start(self) -> None:
        self._end_collecting()
        while self._waiting and len(self._running) < self._rule.lanes:
            batch = self._waiting[: self._rule.max_batch]
            del self._waiting[: self._rule.max_batch]
            self._trigger.record_batch(len(batch))
            task = self._create_task(self._run(batch), batch)
            self._running.add(task)
            task.add_done_callback(self._on_batch_done)

    def _create_task(
        self, work: Coroutine[Any, Any, _Failure], batch: Sequence[_Call[Item, Answer]]
    ) -> asyncio.Task[_Failure]:
        # In a context of no single caller.
        context, shared = fresh_context(self._origin(batch)), None
        spans = list(dict.fromkeys(call[3] for call in batch if call[3] is not None))
        if spans:
            shared = _batch_span(spans, self._name, len(batch)) if len(spans) > 1 else None
            context.run(current_span.set, shared or spans[0])
        task = asyncio.get_running_loop().create_task(work, context=context)
        if shared is not None:
            task.add_done_callback(partial(_end_span, shared))
        if self._rule.abandons:
            _cancel_when_all_left(task, [call[1] for call in batch])
        return task

    def _origin(self, batch: Sequence[_Call[Item, Answer]]) -> WorkOrigin:
        """Return the method whose calls a batch serves; for several the batch's own name, with their best rank."""
        origins = {call[2] for call in batch}
        if len(origins) == 1:
            return origins.pop()
        return task_origin(self._name, max(origin.rank for origin in origins))

    def _end_collecting(self) -> None:
        self._is_collecting = False
        if self._second_lane is not None:
            self._second_lane.cancel()
            self._second_lane = None

    def _on_batch_done(self, task: asyncio.Task[_Failure]) -> None:
        self._running.discard(task)
        if self._waiting:
            self._end_collecting()
            self._is_collecting = True
            self._trigger.check()

    async def _run(self, batch: Sequence[_Call[Item, Answer]]) -> _Failure:
        """Run a batch and settle its futures; return the error if it concerns everyone."""
        live = [call for call in batch if not call[1].done()]
        if not live:
            return None
        try:
            # A single item has the whole time that a statement may take.
            async with asyncio.timeout(self._rule.patience_s if len(live) > 1 else None):
                answers = await self._work([call[0] for call in live])
            answered = list(zip(live, answers, strict=True))
        except (StatementTimeout, TimeoutError) as error:
            if len(live) > 1:
                for call in live:  # beside the lanes, which serve the others meanwhile
                    self._start_alone(self._run_with_slot(call), call)
                return None
            _settle(live[0][1], error)
            return None
        except (DependencyDown, TooManyWait) as error:
            _settle_all(live, error)
            return error
        except Exception as error:  # noqa: BLE001  # running items alone finds the one at fault
            if len(live) == 1:
                _settle(live[0][1], error)
                return None
            return await self._run_singly(live)
        except BaseException as error:
            for call in live:
                _settle(call[1], SyncbeatError("the batch was cancelled"))
            raise error
        for call, answer in answered:
            _settle(call[1], answer)
        return None

    def _start_alone(self, work: Coroutine[Any, Any, _Failure], call: _Call[Item, Answer]) -> asyncio.Task[_Failure]:
        task = self._create_task(work, [call])
        self._alone.add(task)
        task.add_done_callback(self._alone.discard)
        return task

    async def _run_with_slot(self, call: _Call[Item, Answer]) -> _Failure:
        async with self._alone_slots:
            return await self._run([call])

    async def _run_singly(self, live: Sequence[_Call[Item, Answer]]) -> _Failure:
        for number, call in enumerate(live):
            # In a task of its own, which can end with its caller while the callers of other items still wait.
            one = self._start_alone(self._run([call]), call)
            try:
                await asyncio.wait([one])
            finally:
                one.cancel()
            failure = None if one.cancelled() else one.result()
            if failure is not None:
                _settle_all(live[number:], failure)
                return failure
        return None


def _cancel_when_all_left(task: asyncio.Task[Any], futures: Sequence[asyncio.Future[Answer]]) -> None:
    remaining = len(futures)

    def on_done(future: asyncio.Future[Answer]) -> None:
        nonlocal remaining
        remaining -= future.cancelled()
        if not remaining:
            task.cancel()

    for future in futures:
        future.add_done_callback(on_done)


def _batch_span(spans: Sequence[Span], name: str, size: int) -> Span:
    """Start the span of work that several calls share: a trace of its own, linked to all of them, as they are to it.

    Below one of them it would be seen by who follows that one alone, and be left out whenever that one is (ADR 176).
    """
    links = [one.context.traceparent for one in spans]
    shared = spans[0].detached(f"batch {name}", SpanKind.INTERNAL, {"syncbeat.batch.size": size}, links)
    if shared.is_recorded:
        for one in spans:
            one.link(shared.context.traceparent)
    return shared


def _end_span(span: Span, _task: asyncio.Task[Any]) -> None:
    span.end()


def _settle_all(batch: Sequence[_Call[Item, Answer]], failure: DependencyDown | TooManyWait) -> None:
    for _, future, *_ in batch:
        # Those who are shed together are told different times to come again.
        _settle(future, _shed() if isinstance(failure, TooManyWait) else failure)


def _shed() -> TooManyWait:
    return TooManyWait(random.random())  # noqa: S311  # no secret


def _settle(future: asyncio.Future[Answer], answer: Answer | Exception) -> None:
    if future.done():
        return
    if isinstance(answer, Exception):
        future.set_exception(answer)
    else:
        future.set_result(answer)
