"""Group commit: many callers, few batches, and each caller gets its own answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextvars import ContextVar

import pytest

from syncbeat_server.errors import DependencyDown, NotFound, Overloaded
from syncbeat_server.storage.batcher import Batcher, BatchRule
from syncbeat_server.storage.postgres.driver_errors import StatementTimeout, TooManyWait
from tests.support.fake_clock import settle, wait_until

pytestmark = pytest.mark.unit


class Desk:
    """Doubles numbers, remembers the batches, and waits at the gate when it is closed."""

    def __init__(self, *, closed: bool = False) -> None:
        self.batches: list[list[int]] = []
        self.under_way = self.most_under_way = 0
        self.gate = asyncio.Event()
        self.fault: Callable[[Sequence[int]], None] = lambda items: None
        if not closed:
            self.gate.set()

    async def __call__(self, items: Sequence[int]) -> list[int | Exception]:
        self.batches.append(list(items))
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await self.gate.wait()
        finally:
            self.under_way -= 1
        self.fault(items)
        return [NotFound("zero") if item == 0 else item * 2 for item in items]


async def gathered(batcher: Batcher[int, int], *items: int) -> list[int | BaseException]:
    return await asyncio.wait_for(asyncio.gather(*map(batcher.submit, items), return_exceptions=True), 20)


async def test_batcher_groups_concurrent_calls_and_answers_each() -> None:
    desk = Desk()
    assert await gathered(Batcher(desk), 3, 1, 2, 1) == [6, 2, 4, 2]
    assert desk.batches == [[3, 1, 2, 1]]


async def test_batcher_lone_call_does_not_wait() -> None:
    desk = Desk()
    batcher: Batcher[int, int] = Batcher(desk)
    for item in (1, 2, 3):
        assert await asyncio.wait_for(batcher.submit(item), 20) == item * 2
    assert desk.batches == [[1], [2], [3]]


async def test_batcher_lone_call_after_a_crowd_is_answered() -> None:
    desk = Desk()
    batcher: Batcher[int, int] = Batcher(desk)
    await gathered(batcher, *range(1, 50))
    assert await asyncio.wait_for(batcher.submit(7), 20) == 14


async def test_batcher_batches_are_bounded_ordered_and_two_at_once() -> None:
    desk = Desk(closed=True)
    batcher: Batcher[int, int] = Batcher(desk, BatchRule(max_batch=3, lanes=2))
    calls = [asyncio.ensure_future(batcher.submit(item)) for item in range(1, 12)]
    await wait_until(lambda: desk.under_way == 2)
    late = asyncio.ensure_future(batcher.submit(99))
    desk.gate.set()
    assert await asyncio.wait_for(asyncio.gather(*calls, late), 20) == [*(n * 2 for n in range(1, 12)), 198]
    assert [item for batch in desk.batches for item in batch] == [*range(1, 12), 99]
    assert max(map(len, desk.batches)) == 3
    assert desk.most_under_way == 2


async def test_batcher_runs_in_an_empty_context() -> None:
    """Run in an empty context: what it logs would be taken for one caller's."""
    name: ContextVar[str] = ContextVar("name", default="nobody")
    gate, found = asyncio.Event(), list[str]()

    async def work(items: Sequence[int]) -> Sequence[int]:
        found.append(name.get())
        await gate.wait()
        return items

    batcher: Batcher[int, int] = Batcher(work, BatchRule(max_batch=2))

    async def call(item: int) -> int:
        name.set(f"caller {item}")
        return await batcher.submit(item)

    first = [asyncio.ensure_future(call(item)) for item in range(2)]
    await wait_until(lambda: found)
    second = [asyncio.ensure_future(call(item)) for item in range(2)]  # while the first is under way
    await wait_until(lambda: len(found) == 2)
    gate.set()
    assert await asyncio.gather(*first, *second) == [0, 1] * 2
    assert found == ["nobody"] * 2


async def test_batcher_is_fair_under_load() -> None:
    desk = Desk()
    batcher: Batcher[int, int] = Batcher(desk, BatchRule(max_batch=4))
    stop = False

    async def insistent() -> None:
        while not stop:
            await batcher.submit(1)

    crowd = [asyncio.ensure_future(insistent()) for _ in range(20)]
    await settle()
    try:
        for item in range(2, 12):
            before = len(desk.batches)
            assert await asyncio.wait_for(batcher.submit(item), 20) == item * 2
            assert len(desk.batches) - before <= 10
    finally:
        stop = True
        await asyncio.wait_for(asyncio.gather(*crowd), 20)


async def test_batcher_error_answer_is_one_callers() -> None:
    desk = Desk()
    one, zero, two = await gathered(Batcher(desk), 1, 0, 2)
    assert (one, two) == (2, 4)
    assert isinstance(zero, NotFound)
    assert len(desk.batches) == 1


async def test_batcher_failed_batch_is_retried_call_by_call() -> None:
    desk = Desk()

    def fault(items: Sequence[int]) -> None:
        if 13 in items:
            raise ValueError("thirteen")

    desk.fault = fault
    results = await gathered(Batcher(desk), 1, 13, 2)
    assert (results[0], results[2]) == (2, 4)
    assert isinstance(results[1], ValueError)
    assert desk.batches == [[1, 13, 2], [1], [13], [2]]


async def test_batcher_outage_fails_all_without_retry() -> None:
    desk = Desk()

    def fault(items: Sequence[int]) -> None:
        raise DependencyDown("the database does not answer")

    desk.fault = fault
    results = await gathered(Batcher(desk), 1, 2, 3)
    assert [type(result) for result in results] == [DependencyDown] * 3
    assert desk.batches == [[1, 2, 3]]


async def test_batcher_shed_by_the_pool_fails_all_without_another_wait() -> None:
    desk = Desk()

    def fault(items: Sequence[int]) -> None:
        raise TooManyWait(0.5)

    desk.fault = fault
    results = await gathered(Batcher(desk), *range(50))
    assert [type(result) for result in results] == [TooManyWait] * 50
    assert desk.batches == [list(range(50))]
    # Those who are shed together do not come back together.
    assert len({result.retry_after_s for result in results if isinstance(result, TooManyWait)}) > 1


async def test_batcher_outage_during_single_calls_stops_them() -> None:
    desk = Desk()

    def fault(items: Sequence[int]) -> None:
        if len(items) > 1:
            raise ValueError("somebody's fault")
        if items[0] == 2:
            raise DependencyDown("and now the database is gone")

    desk.fault = fault
    results = await gathered(Batcher(desk), 1, 2, 3, 4)
    assert results[0] == 2
    assert [type(result) for result in results[1:]] == [DependencyDown] * 3
    assert desk.batches == [[1, 2, 3, 4], [1], [2]]


async def test_batcher_missing_answers_leave_nobody_waiting() -> None:
    async def forgetful(items: Sequence[int]) -> list[int | Exception]:
        return []

    results = await gathered(Batcher(forgetful), 1, 2)
    assert [type(result) for result in results] == [ValueError] * 2


async def test_batcher_cancelled_caller_takes_nobody_along() -> None:
    desk = Desk(closed=True)
    batcher: Batcher[int, int] = Batcher(desk, BatchRule(lanes=1))
    calls = [asyncio.ensure_future(batcher.submit(item)) for item in (1, 2, 3)]
    await wait_until(lambda: desk.under_way)
    waiting = [asyncio.ensure_future(batcher.submit(item)) for item in (4, 5)]
    await settle()
    calls[1].cancel()
    waiting[0].cancel()
    desk.gate.set()
    assert [await asyncio.wait_for(call, 20) for call in (calls[0], calls[2], waiting[1])] == [2, 6, 10]
    assert desk.batches == [[1, 2, 3], [5]]  # who left before the batch began is not in it


async def test_batcher_batch_of_cancelled_callers_is_not_run() -> None:
    desk = Desk(closed=True)
    batcher: Batcher[int, int] = Batcher(desk, BatchRule(lanes=1))
    first = asyncio.ensure_future(batcher.submit(1))
    await wait_until(lambda: desk.under_way)
    left = [asyncio.ensure_future(batcher.submit(item)) for item in (2, 3)]
    await settle()
    for call in left:
        call.cancel()
    desk.gate.set()
    await asyncio.wait_for(batcher.drain(), 20)
    assert await first == 2
    assert desk.batches == [[1]]


async def test_batcher_full_queue_refuses_at_once() -> None:
    desk = Desk(closed=True)
    batcher: Batcher[int, int] = Batcher(desk, BatchRule(max_batch=2, max_waiting=3, lanes=1))
    running = [asyncio.ensure_future(batcher.submit(item)) for item in (1, 2)]
    await wait_until(lambda: desk.under_way)
    waiting = [asyncio.ensure_future(batcher.submit(item)) for item in (3, 4, 5)]
    await settle()
    with pytest.raises(Overloaded):
        await batcher.submit(6)
    desk.gate.set()
    assert await asyncio.wait_for(asyncio.gather(*running, *waiting), 20) == [2, 4, 6, 8, 10]
    assert await batcher.submit(7) == 14


async def test_batcher_drain_waits_for_everything_submitted() -> None:
    desk = Desk(closed=True)
    batcher: Batcher[int, int] = Batcher(desk, BatchRule(max_batch=1, lanes=1))
    calls = [asyncio.ensure_future(batcher.submit(item)) for item in (1, 2, 3)]
    await settle()
    draining = asyncio.ensure_future(batcher.drain())
    await settle()
    assert not draining.done()
    desk.gate.set()
    await asyncio.wait_for(draining, 20)
    await settle()
    assert [call.result() for call in calls] == [2, 4, 6]
    await asyncio.wait_for(batcher.drain(), 20)


async def test_batcher_slow_batch_is_split_and_only_the_slow_call_fails() -> None:
    desk = Desk()

    def fault(items: Sequence[int]) -> None:
        if 13 in items:
            raise StatementTimeout("the database took too long")

    desk.fault = fault
    results = await gathered(Batcher(desk), 1, 13, 2, 3)
    assert [results[0], *results[2:]] == [2, 4, 6]
    assert isinstance(results[1], StatementTimeout)
    assert (desk.batches[0], sorted(desk.batches[1:])) == ([1, 13, 2, 3], [[1], [2], [3], [13]])


async def test_batcher_slow_single_calls_hold_up_nobody() -> None:
    slow = asyncio.Event()
    alone = 0

    async def work(items: Sequence[int]) -> list[int | Exception]:
        nonlocal alone
        if len(items) > 1 and 0 in items:
            raise StatementTimeout("the database took too long")
        if items[0] == 0:
            alone += 1
            await slow.wait()
        return [item * 2 for item in items]

    batcher: Batcher[int, int] = Batcher(work, BatchRule(lanes=1))
    hung = [asyncio.ensure_future(batcher.submit(0)) for _ in range(9)]
    await wait_until(lambda: alone == 4)  # so many, and no more, run beside the lanes
    assert await gathered(batcher, 1, 2, 3) == [2, 4, 6]
    assert alone == 4
    draining = asyncio.ensure_future(batcher.drain())
    await settle()
    assert not draining.done()
    slow.set()
    assert await asyncio.wait_for(asyncio.gather(*hung), 20) == [0] * 9
    await asyncio.wait_for(draining, 20)


async def test_batcher_timeout_gives_up_a_batch_and_runs_calls_alone() -> None:
    async def work(items: Sequence[int]) -> list[int | Exception]:
        if len(items) > 1:
            await asyncio.Event().wait()
        return [item * 2 for item in items]

    assert await gathered(Batcher(work, BatchRule(patience_s=0.01)), 1, 2, 3) == [2, 4, 6]


async def test_batcher_abandoned_batch_is_cancelled_with_its_last_caller() -> None:
    desk = Desk(closed=True)
    batcher: Batcher[int, int] = Batcher(desk, BatchRule(lanes=1, abandons=True))
    calls = [asyncio.ensure_future(batcher.submit(item)) for item in (1, 2, 3)]
    await wait_until(lambda: desk.under_way)
    for call in calls[:2]:
        call.cancel()
    await settle()
    assert desk.under_way == 1  # somebody is there
    calls[2].cancel()
    await wait_until(lambda: not desk.under_way)
    desk.gate.set()
    assert await asyncio.wait_for(batcher.submit(4), 20) == 8
    assert desk.batches == [[1, 2, 3], [4]]


async def test_batcher_abandoned_single_call_leaves_the_others() -> None:
    reached, gate = asyncio.Event(), asyncio.Event()

    async def work(items: Sequence[int]) -> list[int | Exception]:
        if len(items) > 1:
            raise ValueError("somebody's fault")
        if items == [1]:
            reached.set()
            await gate.wait()
        return [item * 2 for item in items]

    batcher: Batcher[int, int] = Batcher(work, BatchRule(abandons=True))
    calls = [asyncio.ensure_future(batcher.submit(item)) for item in (1, 2)]
    await reached.wait()
    calls[0].cancel()
    await settle()
    gate.set()
    assert await asyncio.wait_for(calls[1], 20) == 4


@pytest.mark.parametrize("place", [0, 1, 2])
async def test_batcher_abandoned_single_call_ends_though_others_were_answered(place: int) -> None:
    gates = [asyncio.Event() for _ in range(3)]
    begun, ended = list[int](), list[int]()

    async def work(items: Sequence[int]) -> list[int | Exception]:
        if len(items) > 1:
            raise ValueError("somebody's fault")
        begun.append(items[0])
        try:
            await gates[items[0]].wait()
        finally:
            ended.append(items[0])
        return [item * 2 for item in items]

    batcher: Batcher[int, int] = Batcher(work, BatchRule(abandons=True))
    calls = [asyncio.ensure_future(batcher.submit(item)) for item in range(3)]
    for gate in gates[:place]:
        gate.set()
    await wait_until(lambda: begun == list(range(place + 1)))
    calls[place].cancel()
    await wait_until(lambda: ended == list(range(place + 1)))  # its gate is closed still
    for gate in gates[place + 1 :]:
        gate.set()
    rest = [item for item in range(3) if item != place]
    assert await asyncio.wait_for(asyncio.gather(*(calls[item] for item in rest)), 20) == [item * 2 for item in rest]
    await asyncio.wait_for(batcher.drain(), 20)
    assert ended == [0, 1, 2]
