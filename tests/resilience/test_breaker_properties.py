"""Compares the breaker with a model that remembers every call, over drawn courses of calls, ends and time."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncbeat_server.resilience.breaker import Breaker, BreakerRule, BreakerState, Permit
from tests.support.fake_clock import FakeClock

pytestmark = pytest.mark.unit

RULE = BreakerRule(failures=3, open_s=60.0, trials=2, successes=2)
FAILED, OK, RELEASED, PENDING = "failed", "ok", "released", "pending"


class Model:
    """The rule of the breaker, told without any cleverness."""

    def __init__(self) -> None:
        self.now = 0.0
        self.opened_at: float | None = None
        self.calls: list[str] = []
        self.trials: set[int] = set()
        self.successes = 0
        self.era = 0

    @property
    def state(self) -> BreakerState:
        if self.opened_at is None:
            return BreakerState.CLOSED
        return BreakerState.HALF_OPEN if self.now - self.opened_at >= RULE.open_s else BreakerState.OPEN

    def admits(self) -> bool:
        match self.state:
            case BreakerState.CLOSED:
                return True
            case BreakerState.OPEN:
                return False
            case BreakerState.HALF_OPEN:
                return len(self.trials) < RULE.trials

    def begin(self) -> tuple[int, int]:
        self.calls.append(PENDING)
        number = len(self.calls) - 1
        if self.opened_at is not None:
            self.trials.add(number)
        return self.era, number

    def end(self, era: int, number: int, how: str) -> None:
        if era != self.era:
            return
        self.calls[number] = how
        if self.opened_at is not None:
            self.trials.discard(number)
            self.successes += how == OK
            if how == FAILED:
                self.move(self.now)
            elif self.successes >= RULE.successes:
                self.move(None)
        elif "xxx" in "".join("x" if one == FAILED else "." for one in self._since_success() if one != RELEASED):
            self.move(self.now)

    def _since_success(self) -> list[str]:
        """The calls that began after the last one which succeeded."""
        last = max((number for number, how in enumerate(self.calls) if how == OK), default=-1)
        return self.calls[last + 1 :]

    def move(self, opened_at: float | None) -> None:
        self.era += 1
        self.opened_at = opened_at
        self.calls, self.trials, self.successes = [], set(), 0


STEPS = st.lists(
    st.one_of(
        st.just("begin"),
        st.tuples(st.integers(0, 30), st.sampled_from([FAILED, FAILED, OK, RELEASED])),
        st.sampled_from([1.0, 59.0, 60.0, 61.0]),
    ),
    max_size=120,
)


@given(STEPS)
def test_breaker_agrees_with_a_model_that_forgets_nothing(steps: list[str | tuple[int, str] | float]) -> None:
    asyncio.run(_play(steps))


async def _play(steps: list[str | tuple[int, str] | float]) -> None:
    clock, model = FakeClock(), Model()
    told: list[BreakerState] = []
    breaker = Breaker(RULE, clock, told.append)
    under_way: list[tuple[Permit, tuple[int, int]]] = []
    for step in steps:
        if isinstance(step, float):
            await clock.advance(step)
            model.now += step
        elif isinstance(step, tuple):
            if under_way:
                permit, call = under_way.pop(step[0] % len(under_way))
                {FAILED: permit.fail, OK: permit.succeed, RELEASED: permit.release}[step[1]]()
                permit.fail()  # it has ended: neither this nor a second release counts
                permit.release()
                model.end(*call, step[1])
        else:
            permitted = breaker.acquire()
            assert (permitted is not None) == model.admits()
            if permitted is not None:
                under_way.append((permitted, model.begin()))
        assert breaker.state is model.state
        if model.state is BreakerState.HALF_OPEN:
            assert breaker.free_permits == RULE.trials - len(model.trials)
    assert all(before is not after for before, after in itertools.pairwise(told)), "told once each"


@given(st.lists(st.sampled_from([RELEASED, FAILED]), min_size=1, max_size=40))
def test_breaker_never_wedges_by_cancelled_and_late_trials(ends: list[str]) -> None:
    asyncio.run(_never_wedged(ends))


async def _never_wedged(ends: list[str]) -> None:
    clock = FakeClock()
    breaker = Breaker(RULE, clock)
    breaker.open_for(0.0)
    late: list[Permit] = []
    for how in ends:
        permit = breaker.acquire()
        if permit is None:
            await clock.advance(RULE.open_s)
            permit = breaker.acquire()
        assert permit is not None
        late.append(permit)
        if how == FAILED:
            permit.fail()
        else:
            permit.release()
    await clock.advance(RULE.open_s)
    for permit in late:
        permit.fail()
    for _ in range(RULE.successes):
        permit = breaker.acquire()
        assert permit is not None
        permit.succeed()
    assert breaker.state is BreakerState.CLOSED
