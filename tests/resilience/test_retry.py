"""Tests what is repeated, how often, how late, and what is not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncbeat_server.errors import (
    CircuitOpen,
    DependencyDown,
    DependencyUnfit,
    KeyUnknownYet,
    NotFound,
    Overloaded,
    SyncbeatError,
)
from syncbeat_server.resilience.retry import Retry, RetryBudget, RetryRule
from syncbeat_server.runtime.deadline import set_deadline
from syncbeat_server.storage.postgres.driver_errors import StatementTimeout
from tests.support.fake_clock import FakeClock, settle

pytestmark = pytest.mark.unit

DOWN = DependencyDown("down")


class Work:
    """Fails as its script says, then answers; records when it was tried."""

    def __init__(self, clock: FakeClock, *script: SyncbeatError) -> None:
        self._clock = clock
        self._script = list(script)
        self.tried_at: list[float] = []

    async def __call__(self) -> str:
        self.tried_at.append(self._clock.monotonic())
        if self._script:
            raise self._script.pop(0)
        return "done"


def longest(low: float, high: float) -> float:
    return high


async def outcome(clock: FakeClock, work: Work, draw: Callable[[float, float], float] = longest) -> object:
    running = asyncio.ensure_future(Retry(clock, lambda: 0, uniform=draw).run(work))
    await settle()
    await clock.advance(10.0)
    (found,) = await asyncio.gather(running, return_exceptions=True)
    return found


async def test_retry_makes_three_attempts_with_exponential_waits() -> None:
    clock = FakeClock()
    work = Work(clock, DOWN, DOWN)
    assert await outcome(clock, work) == "done"
    assert work.tried_at == [0.0, 1.0, 3.0], "at the latest: 1 s, then 2 s"
    clock = FakeClock()
    work = Work(clock, DOWN, DOWN, DOWN, DOWN)
    assert await outcome(clock, work) is DOWN
    assert len(work.tried_at) == 3


async def test_retry_jitter_is_full() -> None:
    drawn: list[tuple[float, float]] = []

    def draw(low: float, high: float) -> float:
        drawn.append((low, high))
        return low

    clock = FakeClock()
    assert await outcome(clock, Work(clock, DOWN, DOWN), draw) == "done"
    assert drawn == [(0.0, 1.0), (0.0, 2.0)]


@pytest.mark.parametrize(
    "error",
    [
        CircuitOpen("away"),
        DependencyUnfit("unfit"),
        KeyUnknownYet("unknown"),
        StatementTimeout("slow"),
        DependencyDown("cooling down", retry_after_s=30.0),
        Overloaded("shed"),
        NotFound("none"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_retry_repeats_only_what_passes_by_itself(error: SyncbeatError) -> None:
    clock = FakeClock()
    work = Work(clock, error)
    assert await outcome(clock, work) is error
    assert len(work.tried_at) == 1


@pytest.mark.parametrize(("left_s", "attempts"), [(0.5, 1), (1.04, 1), (1.5, 2), (9.0, 3)])
async def test_retry_stays_within_the_deadline(left_s: float, attempts: int) -> None:
    clock = FakeClock()
    work = Work(clock, DOWN, DOWN, DOWN)

    async def call() -> object:
        set_deadline(left_s)
        return await Retry(clock, lambda: 0, uniform=longest).run(work)

    running = asyncio.ensure_future(call())
    await settle()
    await clock.advance(10.0)
    (found,) = await asyncio.gather(running, return_exceptions=True)
    # Time by which deadlines go stands still here, so that the second wait (2 s) is held against all of it.
    assert found is DOWN
    assert len(work.tried_at) == attempts


async def test_retry_cancelled_while_it_waits_tries_no_more() -> None:
    clock = FakeClock()
    work = Work(clock, DOWN)
    running = asyncio.ensure_future(Retry(clock, lambda: 0, uniform=longest).run(work))
    await settle()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await clock.advance(10.0)
    assert len(work.tried_at) == 1


@given(st.lists(st.tuples(st.booleans(), st.floats(0.0, 0.02)), max_size=400), st.integers(1, 50))
def test_retry_budget_is_a_tenth_of_the_calls_of_a_second_or_ten(
    course: list[tuple[bool, float]], calls_at_once: int
) -> None:
    now, made = 0.0, 0
    budget = RetryBudget(RetryRule(), lambda: now, lambda: made)
    calls, repeats = dict[int, int](), dict[int, int]()
    for is_call, seconds in course:
        second = int(now)
        if is_call:
            made += calls_at_once
            calls[second] = calls.get(second, 0) + calls_at_once
        elif budget.take():
            repeats[second] = repeats.get(second, 0) + 1
        now += seconds
    # A second of the clock meets two of the budget's, and one of the budget's two of the clock.
    busiest = 2 * max(calls.values(), default=0)
    assert all(count <= 2 * max(10, busiest * 0.1) for count in repeats.values())


def test_retry_budget_lets_ten_a_second_through_and_no_more() -> None:
    now, made = 5.0, 0
    budget = RetryBudget(RetryRule(), lambda: now, lambda: made)
    assert [budget.take() for _ in range(12)] == [True] * 10 + [False] * 2
    now, made = 6.0, 1_000
    assert sum(budget.take() for _ in range(500)) == 100
    now, made = 16.0, 2_000
    assert sum(budget.take() for _ in range(500)) == 10, "a hundred calls a second"
