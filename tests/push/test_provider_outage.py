"""Tests an outage of a provider of ten minutes under load, with four workers that share a breaker over Redis."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from datetime import datetime

import asyncpg
import pytest
import pytest_asyncio

from syncbeat_server.app.process import run_in_background
from syncbeat_server.push.delivery.worker import DeliveryWorker
from syncbeat_server.push.model import Outcome, Reason, Verdict
from syncbeat_server.push.providers import Message
from syncbeat_server.resilience.breaker import BreakerState
from tests.support.breakers import WatchedStates, make_registry, shared_states
from tests.support.build import APP, make_channel, make_worker
from tests.support.databases import DatabaseUrls, WatchedDatabase
from tests.support.fake_clock import FakeClock
from tests.support.seed import accept, couple, message, until, value_of
from tests.support.workers import running

pytestmark = pytest.mark.store

WORKERS = 4
OUTAGE_S = 600.0
IN_FLIGHT = 8


class Outage:
    """A provider that answers nothing but errors until it is told to be back."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self.is_down = True
        self.asked_at: list[float] = []
        self.sent = Counter[str]()

    async def send(self, message: Message) -> Outcome:
        if self.is_down:
            self.asked_at.append(self._clock.monotonic())
            return Outcome(Verdict.RETRY, Reason.UNAVAILABLE)
        self.sent[message.delivery.delivery_id] += 1
        return Outcome(Verdict.SENT, provider_message_id="m")

    async def close(self) -> None:
        """Nothing to give back."""


@pytest_asyncio.fixture
async def states(redis_url: str) -> AsyncIterator[WatchedStates]:
    async with shared_states(redis_url) as opened:
        yield opened


@pytest_asyncio.fixture
async def clock(
    database_urls: DatabaseUrls, database: WatchedDatabase, states: WatchedStates
) -> AsyncIterator[FakeClock]:
    """The clock of this test and of its database, which waits for answers of both stores."""
    conn = await asyncpg.connect(database_urls.owner_url)

    async def move(moment: datetime) -> None:
        await conn.execute("UPDATE test_clock SET at = $1", moment)

    async def rest() -> bool:
        waited = await database.rest()
        return await states.rest() or waited

    try:
        moved = FakeClock(on_move=move, rest=rest)
        await move(moved.now())
        yield moved
    finally:
        await conn.close()


async def test_provider_outage_of_ten_minutes_costs_three_probes_a_minute_and_loses_nothing(
    database: WatchedDatabase, clock: FakeClock, states: WatchedStates
) -> None:
    await couple(database)
    provider, accepted, learned_at = Outage(clock), 0, OUTAGE_S
    registries = [make_registry(clock, states, every_s=5.0) for _ in range(WORKERS)]
    workers: list[DeliveryWorker] = []
    for registry in registries:
        channel = make_channel(provider, clock, IN_FLIGHT, registry.of(f"push:{APP}"))
        workers.append(make_worker(database, clock, channels={APP: channel}, poll_s=10.0, lease_s=300.0))
    async with run_in_background([one.run() for one in registries]), running(*workers):
        while clock.monotonic() < OUTAGE_S:
            await accept(database, *(message(ttl_s=7_200.0) for _ in range(4)))
            accepted += 4
            for worker in workers:
                worker.wake()
            await clock.advance(10.0)
            if all(one.of(f"push:{APP}").state is not BreakerState.CLOSED for one in registries):
                learned_at = min(learned_at, clock.monotonic())
        provider.is_down = False
        back_at = clock.monotonic()

        async def all_sent() -> bool:
            await clock.advance(5.0)
            return bool(await value_of(database, "SELECT bool_and(state = 'SENT') FROM deliveries"))

        await until(all_sent, what="every delivery sent")
    assert await value_of(database, "SELECT count(*) FROM deliveries") == accepted
    assert len(provider.sent) == accepted, "nothing is lost"
    assert set(provider.sent.values()) == {1}
    learning = [at for at in provider.asked_at if at <= learned_at]
    assert learned_at <= 60.0
    assert len(learning) <= WORKERS * IN_FLIGHT
    probes = [at for at in provider.asked_at if at > learned_at]
    assert len(probes) >= OUTAGE_S / 70, "it is asked if it is back"
    for first in probes:
        assert sum(first <= at < first + 60.0 for at in probes) <= 3, probes
    assert clock.monotonic() - back_at <= 150.0, "a minute, a second look, and the retries that waited"
