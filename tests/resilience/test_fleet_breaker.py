"""Tests what processes that share the state of a breaker make of each other's failures, and of their own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence

import pytest
import pytest_asyncio

from syncbeat_server.clock import SystemClock
from syncbeat_server.resilience.breaker import BreakerState
from syncbeat_server.resilience.breaker_registry import BreakerRegistry
from syncbeat_server.resilience.fleet_breaker import FleetBreaker, FleetState
from syncbeat_server.storage.redis.breaker_states import RedisBreakerStates
from syncbeat_server.storage.redis.bus import open_redis
from tests.support.breakers import RULE, Process, WatchedStates, shared_states, sync
from tests.support.fake_clock import FakeClock

pytestmark = pytest.mark.store

NAME = "push:default"
CLOSED, OPEN, HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN


@pytest_asyncio.fixture
async def states(redis_url: str) -> AsyncIterator[WatchedStates]:
    async with shared_states(redis_url) as opened:
        yield opened


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


async def test_fleet_breaker_needs_two_witnesses(clock: FakeClock, states: WatchedStates) -> None:
    one, two, three = fleet = [Process(clock, states) for _ in range(3)]
    for _ in range(4):
        assert await sync(fleet) == [OPEN if one.breaker.state is OPEN else CLOSED, CLOSED, CLOSED]
        if one.breaker.state is CLOSED:
            await one.open()
        else:  # cut off for long: it bears witness again and again, and is one all the same
            await clock.advance(60.0)
            (await one.permit()).fail()
    await two.open()
    assert await sync(fleet) == [OPEN, OPEN, OPEN]
    assert await three.breaker.acquire() is None, "spared its own five failures"
    assert 59.0 < three.breaker.retry_in_s <= 60.0


async def test_fleet_breaker_tells_a_new_process(clock: FakeClock, states: WatchedStates) -> None:
    one, two = Process(clock, states), Process(clock, states)
    await one.open()
    await two.open()
    born = Process(clock, states)
    await born.registry.sync()
    assert born.breaker.state is OPEN
    other = born.registry.of("push:other")
    await born.registry.sync()
    assert other.state is CLOSED


async def test_fleet_breaker_hands_out_three_trials_to_all_together(clock: FakeClock, states: WatchedStates) -> None:
    fleet = [Process(clock, states) for _ in range(4)]
    await fleet[0].open()
    await fleet[1].open()
    await sync(fleet)
    await clock.advance(60.0)
    trials = [one for process in fleet for _ in range(3) if (one := await process.breaker.acquire()) is not None]
    assert len(trials) == RULE.trials
    trials[0].release()
    await sync(fleet)
    await clock.advance(1.0)  # who was turned away asks again after a second
    assert await fleet[3].breaker.acquire() is not None, "a cancelled trial gives its place back to the fleet"
    trials[1].fail()
    assert await sync(fleet) == [OPEN] * 4
    trials[2].succeed()
    trials[0].fail()
    await sync(fleet)
    await clock.advance(59.9)
    assert [await one.breaker.acquire() for one in fleet] == [None] * 4, "what was tried before counts no longer"


async def test_fleet_breaker_closes_by_successes_of_several(clock: FakeClock, states: WatchedStates) -> None:
    fleet = [Process(clock, states) for _ in range(3)]
    await fleet[0].open()
    await fleet[1].open()
    await sync(fleet)
    await clock.advance(60.0)
    for process in fleet:
        (await process.permit()).succeed()
        assert process.breaker.state is HALF_OPEN
    assert await sync(fleet) == [CLOSED] * 3
    assert fleet[0].breaker.free_permits is None


async def test_fleet_breaker_lets_others_try_first_after_a_failed_trial(
    clock: FakeClock, states: WatchedStates
) -> None:
    cut_off, well = fleet = [Process(clock, states) for _ in range(2)]
    await cut_off.open()
    await well.open()
    await sync(fleet)
    await clock.advance(60.0)
    (await cut_off.permit()).fail()
    await sync(fleet)
    await clock.advance(60.0)
    assert await cut_off.breaker.acquire() is None
    for _ in range(3):
        (await well.permit()).succeed()
    assert await sync(fleet) == [CLOSED, CLOSED]
    await cut_off.open()
    assert await sync(fleet) == [OPEN, CLOSED], "its own traffic alone"
    await clock.advance(60.0)
    (await cut_off.permit()).fail()
    assert await sync(fleet) == [OPEN, CLOSED]


async def test_fleet_breaker_goes_by_itself_without_redis(clock: FakeClock) -> None:
    async with open_redis("redis://127.0.0.1:1/0", SystemClock(), "ours") as nowhere:
        fleet = [Process(clock, RedisBreakerStates(nowhere)) for _ in range(2)]
        await fleet[0].open()
        assert await sync(fleet) == [OPEN, CLOSED]
        await clock.advance(60.0)
        for _ in range(3):
            (await fleet[0].permit()).succeed()
        assert await sync(fleet) == [CLOSED, CLOSED]


async def test_fleet_breaker_survives_a_lost_redis(clock: FakeClock, states: WatchedStates, redis_url: str) -> None:
    fleet = [Process(clock, states) for _ in range(2)]
    await fleet[0].open()
    await fleet[1].open()
    await sync(fleet)
    assert await states._bus.forget("breaker") > 0
    assert await sync(fleet) == [OPEN, OPEN], "what was known stays"
    await clock.advance(63.0)
    trials = [one for process in fleet for _ in range(3) if (one := await process.breaker.acquire()) is not None]
    assert len(trials) == 6, "each goes by itself until they agree anew"
    trials[0].fail()
    trials[3].fail()
    await sync(fleet)
    third = Process(clock, states)
    assert await sync([*fleet, third]) == [OPEN, OPEN, OPEN]


async def test_fleet_breaker_transitions_are_logged_and_counted_once(
    clock: FakeClock, states: WatchedStates, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    counted: list[tuple[str, str]] = []

    class Observer:
        def breaker_moved(self, dependency: str, state: str) -> None:
            counted.append((dependency, state))

    breaker = FleetBreaker(NAME, RULE, clock, None, Observer())
    for _ in range(10):
        if (permit := await breaker.acquire()) is not None:
            permit.fail()
    await clock.advance(60.0)
    for _ in range(3):
        permit = await breaker.acquire()
        assert permit is not None
        permit.succeed()
    assert counted == [("push", "OPEN"), ("push", "HALF_OPEN"), ("push", "CLOSED")]
    told = [(one.levelname, vars(one)["by"]) for one in caplog.records if "breaker" in vars(one)]
    assert told == [("WARNING", "own calls"), ("INFO", "own calls"), ("INFO", "own calls")]


async def test_fleet_breaker_cancelled_acquire_leaves_no_trial_behind(clock: FakeClock, states: WatchedStates) -> None:
    fleet = [Process(clock, states) for _ in range(2)]
    await fleet[0].open()
    await fleet[1].open()
    await sync(fleet)
    await clock.advance(60.0)
    for _ in range(10):
        asking = asyncio.ensure_future(fleet[0].breaker.acquire())
        await asyncio.sleep(0)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await sync(fleet)
    trials = [await fleet[0].breaker.acquire() for _ in range(3)]
    assert None not in trials


def test_breaker_registry_is_bounded(clock: FakeClock) -> None:
    registry = BreakerRegistry(RULE, clock, most=3)
    kept = registry.of("webhook:kept:443")
    for number in range(100):
        registry.of(f"webhook:{number}:443")
        assert registry.of("webhook:kept:443") is kept
    assert registry.count == 3


async def test_breaker_registry_forgets_no_open_breaker_for_a_closed_one(clock: FakeClock) -> None:
    registry = BreakerRegistry(RULE, clock, most=3)
    broken = registry.of("webhook:broken:443")
    for _ in range(RULE.failures):
        permit = await broken.acquire()
        assert permit is not None
        permit.fail()
    for number in range(100):
        registry.of(f"webhook:{number}:443")
    assert registry.count == 3
    assert registry.of("webhook:broken:443") is broken


class _StatesThatTakeTime(WatchedStates):
    """Shared states in whose reading a breaker is asked for that was not there before."""

    registry: BreakerRegistry | None = None

    async def read(self, names: Sequence[str]) -> list[FleetState]:
        found = await super().read(names)
        if self.registry is not None:
            self.registry.of(NAME)
        return found


async def test_breaker_made_during_an_exchange_hears_of_the_fleet(clock: FakeClock, redis_url: str) -> None:
    async with open_redis(redis_url, SystemClock()) as bus:
        states = _StatesThatTakeTime(bus)
        one, two = Process(clock, states), Process(clock, states)
        await one.open()
        await two.open()
        born = BreakerRegistry(RULE, clock, states)
        born.of("push:other")
        states.registry = born
        await born.sync()
        await born.sync()
        assert born.of(NAME).state is OPEN
