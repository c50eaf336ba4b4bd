"""Tests when calls of a store are refused at once, and how soon they are let through again."""

from __future__ import annotations

import asyncio
import logging

import pytest

from syncbeat_server.errors import CircuitOpen
from syncbeat_server.resilience.breaker import BreakerState
from syncbeat_server.resilience.probed_breaker import ProbedBreaker
from tests.support.fake_clock import FakeClock, settle, wait_until

pytestmark = pytest.mark.unit


class Store:
    """Answers probes while it is up."""

    def __init__(self) -> None:
        self.is_up = True
        self.hangs = False
        self.probes = self.found = 0

    async def probe(self) -> bool:
        self.probes += 1
        if self.hangs:
            await asyncio.Event().wait()
        if not self.is_up:
            raise ConnectionRefusedError
        return True

    async def on_found(self) -> None:
        self.found += 1


class Counted:
    """Records transitions."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    def breaker_moved(self, dependency: str, state: str) -> None:
        self.told.append((dependency, state))


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def breaker(store: Store, clock: FakeClock) -> ProbedBreaker:
    return ProbedBreaker("postgres", store.probe, 0.05, clock, store.on_found)


async def test_probed_breaker_opens_for_no_single_failure(breaker: ProbedBreaker, store: Store) -> None:
    for _ in range(10):
        breaker.suspect()
    await settle()
    assert (breaker.state, store.probes, store.found) == (BreakerState.CLOSED, 1, 0)
    breaker.require_closed("down")


async def test_probed_breaker_probes_once_a_second_and_closes_with_the_first_answer(
    breaker: ProbedBreaker, store: Store, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    breaker.observer = counted = Counted()
    store.is_up = False
    breaker.suspect()
    await settle()
    with pytest.raises(CircuitOpen, match="down") as refused:
        breaker.require_closed("down")
    assert 1.0 <= refused.value.retry_after_s <= 2.0
    for _ in range(600):
        breaker.suspect()
        await clock.advance(0.1)
    assert 58 <= store.probes <= 62
    store.is_up = True
    await clock.advance(1.0)
    breaker.require_closed("down")
    assert store.found == 1
    assert counted.told == [("postgres", "OPEN"), ("postgres", "CLOSED")]
    assert [(one.levelname, vars(one)["breaker"]) for one in caplog.records] == [
        ("WARNING", "postgres"),
        ("INFO", "postgres"),
    ]


async def test_probed_breaker_takes_silence_for_an_outage(breaker: ProbedBreaker, store: Store) -> None:
    store.hangs = True
    breaker.suspect()
    await wait_until(lambda: breaker.state is BreakerState.OPEN)
    await breaker.close()
    assert store.probes == 1
