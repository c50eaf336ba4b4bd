"""Plays drawn courses of calls, ends, cancellations, time and news to three processes that share a breaker."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syncbeat_devtools.embedded import EmbeddedStores
from syncbeat_server.resilience.breaker import BreakerState, Permit
from tests.support.breakers import RULE, Process, WatchedStates, shared_states, sync
from tests.support.fake_clock import FakeClock

pytestmark = pytest.mark.store

CLOSED = BreakerState.CLOSED
FAIL, SUCCEED, RELEASE, ACQUIRE, CANCEL, SYNC = "fail", "succeed", "release", "acquire", "cancel", "sync"

Step = tuple[int, str, float]
"""Of which process, what, and which of its calls or how many seconds later."""

STEPS = st.lists(
    st.one_of(
        st.tuples(st.integers(0, 2), st.sampled_from([ACQUIRE, CANCEL, SYNC]), st.just(0.0)),
        st.tuples(st.integers(0, 2), st.sampled_from([FAIL, FAIL, SUCCEED, RELEASE]), st.sampled_from([0.0, 1.0, 2.0])),
        st.tuples(st.integers(0, 2), st.just(ACQUIRE), st.sampled_from([0.0, 3.0, 57.0, 60.0])),
    ),
    max_size=60,
)


class Course:
    """Records the calls of three processes that are under way, and how often each failed."""

    def __init__(self, clock: FakeClock, states: WatchedStates) -> None:
        self.clock = clock
        self.fleet = [Process(clock, states) for _ in range(3)]
        self.under_way: list[list[Permit]] = [[], [], []]
        self.failures = [0, 0, 0]

    async def open(self) -> None:
        """Open the breaker of the fleet."""
        for place in range(2):
            await self.fleet[place].open()
            self.failures[place] = RULE.failures
        await sync(self.fleet)

    async def play(self, place: int, what: str, number: float) -> None:
        """Do one step."""
        one = self.fleet[place]
        if what == SYNC:
            await one.registry.sync()
        elif what == CANCEL:
            await self._cancel(one)
        elif what == ACQUIRE:
            await self.clock.advance(number)
            if (taken := await one.breaker.acquire()) is not None:
                self.under_way[place].append(taken)
        elif self.under_way[place]:
            permit = self.under_way[place].pop(int(number) % len(self.under_way[place]))
            {FAIL: permit.fail, SUCCEED: permit.succeed, RELEASE: permit.release}[what]()
            self.failures[place] += what == FAIL

    async def _cancel(self, one: Process) -> None:
        asking = asyncio.ensure_future(one.breaker.acquire())
        await asyncio.sleep(0)
        asking.cancel()
        for left in await asyncio.gather(asking, return_exceptions=True):
            if isinstance(left, Permit):
                left.release()

    def check(self) -> None:
        """Require that nobody is stopped by what one other process alone has seen."""
        witnesses = sum(count >= RULE.failures for count in self.failures)
        for process, count in zip(self.fleet, self.failures, strict=True):
            assert process.breaker.state is CLOSED or count >= RULE.failures or witnesses >= 2

    async def recover(self) -> None:
        """Answer every trial from here on: late ends change nothing, and no place is lost for good."""
        for permits in self.under_way:
            for permit in permits:
                permit.release()
        for _ in range(3):
            await sync(self.fleet)
            await self.clock.advance(63.0)
            for one in self.fleet:
                while one.breaker.state is not CLOSED and (trial := await one.breaker.acquire()) is not None:
                    trial.succeed()
        assert await sync(self.fleet) == [CLOSED] * 3


@given(st.booleans(), STEPS)
@settings(max_examples=40)
def test_fleet_breaker_keeps_its_promises_over_any_course(
    stores: EmbeddedStores, starts_open: bool, steps: Sequence[Step]
) -> None:
    asyncio.run(_play(stores.redis_url, steps, starts_open=starts_open))


async def _play(redis_url: str, steps: Sequence[Step], *, starts_open: bool) -> None:
    async with shared_states(redis_url, f"drawn-{secrets.token_hex(8)}") as states:
        course = Course(FakeClock(), states)
        if starts_open:
            await course.open()
        for step in steps:
            await course.play(*step)
            course.check()
        await course.recover()


@given(STEPS)
@settings(max_examples=20)
def test_fleet_breaker_has_three_trials_under_way_at_most(stores: EmbeddedStores, steps: Sequence[Step]) -> None:
    asyncio.run(_count_trials(stores.redis_url, steps))


async def _count_trials(redis_url: str, steps: Sequence[Step]) -> None:
    async with shared_states(redis_url, f"drawn-{secrets.token_hex(8)}") as states:
        course = Course(FakeClock(), states)
        await course.open()
        await course.clock.advance(60.0)
        for place, what, number in steps:
            if what in (ACQUIRE, SYNC, CANCEL):
                await course.play(place, what, min(number, 3.0))
            elif what == RELEASE:
                await course.play(place, what, number)
                await sync(course.fleet)
            assert sum(map(len, course.under_way)) <= RULE.trials
        await course.recover()
