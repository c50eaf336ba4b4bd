"""Breakers of several processes that share their states over a real Valkey, and a clock that waits for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

from syncbeat_server.clock import Clock, SystemClock
from syncbeat_server.resilience.breaker import BreakerRule, BreakerState, Permit
from syncbeat_server.resilience.breaker_registry import BreakerRegistry
from syncbeat_server.resilience.fleet_breaker import FleetBreaker, FleetState, Step
from syncbeat_server.storage.redis.breaker_states import RedisBreakerStates
from syncbeat_server.storage.redis.bus import RedisBus, open_redis
from tests.support.fake_clock import FakeClock

RULE = BreakerRule()

Answer = TypeVar("Answer")


class WatchedStates(RedisBreakerStates):
    """The shared states, of which a test knows if somebody waits for them."""

    def __init__(self, bus: RedisBus) -> None:
        super().__init__(bus)
        self._asking = 0
        self._answered = asyncio.Event()

    async def version(self) -> int:
        return await self._watched(super().version())

    async def read(self, names: Sequence[str]) -> list[FleetState]:
        return [_as_new(found) for found in await self._watched(super().read(names))]

    async def advance(self, name: str, step: Step, generation: int, mark: str, rule: BreakerRule) -> FleetState:
        return _as_new(await self._watched(super().advance(name, step, generation, mark, rule)))

    async def _watched(self, call: Awaitable[Answer]) -> Answer:
        self._asking += 1
        try:
            return await call
        finally:
            self._asking -= 1
            self._answered.set()

    async def rest(self) -> bool:
        """Return when nobody waits for an answer; whether that took any waiting."""
        waited = False
        while self._asking:
            waited = True
            self._answered.clear()
            await self._answered.wait()
        return waited


def _as_new(found: FleetState) -> FleetState:
    # Redis's clock goes on while the test's stands: an age counts from when it is heard.
    return found._replace(age_s=0.0)


@asynccontextmanager
async def shared_states(redis_url: str, deployment: str = "ours") -> AsyncIterator[WatchedStates]:
    """Open the states of a deployment for the block."""
    async with open_redis(redis_url, SystemClock(), deployment) as bus:
        yield WatchedStates(bus)


def make_registry(clock: Clock, states: RedisBreakerStates | None, every_s: float = 1.0) -> BreakerRegistry:
    """Build the breakers of one process, which asks for news each `every_s` seconds."""
    return BreakerRegistry(RULE, clock, states, every_s=every_s)


class Process:
    """One process of several: its registry, and the one breaker that they share."""

    def __init__(self, clock: FakeClock, states: RedisBreakerStates | None) -> None:
        self.registry: BreakerRegistry = make_registry(clock, states)
        self.breaker: FleetBreaker = self.registry.of("push:default")

    async def permit(self) -> Permit:
        """Take the permit that there has to be."""
        permit = await self.breaker.acquire()
        assert permit is not None
        return permit

    async def open(self) -> None:
        """Fail as often as it takes to open, and say so."""
        for _ in range(RULE.failures):
            (await self.permit()).fail()
        await self.registry.sync()
        assert self.breaker.state is BreakerState.OPEN


async def sync(processes: Sequence[Process]) -> list[BreakerState]:
    """Let all exchange their news, and return the states of their breakers."""
    for _ in range(2):  # the first hears of what the last tells
        for one in processes:
            await one.registry.sync()
    return [one.breaker.state for one in processes]
