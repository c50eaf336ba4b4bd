"""Tests when a dependency is asked, and when it is left alone."""

from __future__ import annotations

import pytest

from syncbeat_server.resilience.breaker import Breaker, BreakerRule, BreakerState, Permit
from tests.support.fake_clock import FakeClock

pytestmark = pytest.mark.unit

RULE = BreakerRule(failures=5, open_s=60.0, trials=3, successes=3)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def breaker(clock: FakeClock) -> Breaker:
    return Breaker(RULE, clock)


def enter(breaker: Breaker) -> Permit:
    permit = breaker.acquire()
    assert permit is not None
    return permit


def open_it(breaker: Breaker) -> None:
    for _ in range(RULE.failures):
        enter(breaker).fail()
    assert breaker.state is BreakerState.OPEN


def test_breaker_opens_after_five_failures_in_a_row(breaker: Breaker) -> None:
    for _ in range(4):
        enter(breaker).fail()
    enter(breaker).succeed()
    for _ in range(4):
        enter(breaker).fail()
    assert (breaker.state, breaker.free_permits) == (BreakerState.CLOSED, None)
    enter(breaker).fail()
    assert (breaker.state, breaker.free_permits, breaker.retry_in_s) == (BreakerState.OPEN, 0, 60.0)
    assert breaker.acquire() is None


async def test_breaker_half_opens_after_a_minute_and_closes_on_three_successes(
    breaker: Breaker, clock: FakeClock
) -> None:
    open_it(breaker)
    await clock.advance(59.9)
    assert breaker.acquire() is None
    await clock.advance(0.1)
    assert (breaker.state, breaker.free_permits, breaker.retry_in_s) == (BreakerState.HALF_OPEN, 3, 0.0)
    tries = [enter(breaker) for _ in range(3)]
    assert breaker.acquire() is None
    tries[0].succeed()
    assert breaker.free_permits == 1, "a place is free again"
    tries[1].succeed()
    assert breaker.state is BreakerState.HALF_OPEN
    tries[2].succeed()
    assert breaker.free_permits is None, "closed: any number may ask"


async def test_breaker_reopens_after_a_failed_trial(breaker: Breaker, clock: FakeClock) -> None:
    open_it(breaker)
    await clock.advance(60)
    first, second = enter(breaker), enter(breaker)
    first.fail()
    assert (breaker.state, breaker.retry_in_s) == (BreakerState.OPEN, 60.0)
    second.succeed()
    await clock.advance(60)
    assert breaker.free_permits == 3, "what was tried before it opened again counts for nothing"


async def test_breaker_cancelled_trial_returns_its_slot(breaker: Breaker, clock: FakeClock) -> None:
    open_it(breaker)
    await clock.advance(60)
    for _ in range(10):
        permit = enter(breaker)
        permit.release()
        permit.fail()  # it has ended already
    assert (breaker.state, breaker.free_permits) == (BreakerState.HALF_OPEN, 3)


def test_breaker_ignores_calls_begun_before_it_opened(breaker: Breaker) -> None:
    late = [enter(breaker) for _ in range(20)]
    open_it(breaker)
    for permit in late:
        permit.succeed()
    assert breaker.state is BreakerState.OPEN


def test_breaker_ignores_cancelled_calls(breaker: Breaker) -> None:
    for _ in range(4):
        enter(breaker).fail()
    enter(breaker).release()
    enter(breaker).fail()
    assert breaker.state is BreakerState.OPEN


def test_breaker_counts_in_order_of_calls_not_of_answers(breaker: Breaker) -> None:
    calls = [enter(breaker) for _ in range(200)]
    failing = [call for number, call in enumerate(calls) if number % 25 in (3, 4, 5, 6)]
    for call in failing:
        call.fail()  # errors are answered first
    assert breaker.state is BreakerState.CLOSED
    for call in calls:
        call.succeed()
    assert breaker.state is BreakerState.CLOSED
    late = [enter(breaker) for _ in range(5)]
    for call in (late[4], late[0], late[2], late[1]):
        call.fail()
    assert breaker.state is BreakerState.CLOSED
    late[3].fail()
    assert breaker.free_permits == 0, "open"


def test_breaker_ignores_failures_from_before_a_success(breaker: Breaker) -> None:
    hanging = [enter(breaker) for _ in range(6)]
    enter(breaker).succeed()
    for call in hanging:
        call.fail()  # they began while it was away, and it is back
    assert breaker.state is BreakerState.CLOSED
    open_it(breaker)


def test_breaker_memory_is_bounded(breaker: Breaker) -> None:
    for number in range(50_000):
        call = enter(breaker)
        if number % 2:
            call.fail()
        else:
            call.succeed()
    kept = vars(breaker)["_failed"]
    assert breaker.state is BreakerState.CLOSED
    assert len(kept) <= 10_001


def test_breaker_tells_its_failures_while_a_call_is_on_its_way(breaker: Breaker) -> None:
    for _ in range(3):
        enter(breaker).fail()
    on_its_way = enter(breaker)
    assert breaker.failures == 3
    on_its_way.succeed()
    assert breaker.failures == 0
    enter(breaker).fail()
    assert breaker.failures == 1
