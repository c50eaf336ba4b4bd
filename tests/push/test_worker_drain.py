"""A worker that drains, and one whose database is down."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from syncbeat_server.errors import DependencyDown
from syncbeat_server.storage.postgres.database import Database
from tests.support.build import make_worker
from tests.support.doubles import FailingDatabase, ScriptedProvider, SlowDatabase
from tests.support.fake_clock import FakeClock, settle, wait_until
from tests.support.seed import accept, couple, deliveries, message, rows_of, shown
from tests.support.workers import running

pytestmark = [pytest.mark.store, pytest.mark.usefixtures("database", "clock")]


async def test_drain_waits_for_attempts_in_flight_and_claims_no_more(database: Database, clock: FakeClock) -> None:
    await couple(database)
    flying, waiting = message(), message()
    await accept(database, flying)
    provider = ScriptedProvider(gated=True)
    worker = make_worker(database, clock, provider)
    task = asyncio.ensure_future(worker.run())
    await wait_until(lambda: provider.asked)
    draining = asyncio.ensure_future(worker.drain(60))
    await settle()
    await accept(database, waiting)
    worker.wake()
    await settle()
    assert not draining.done()
    provider.gate.set()
    await asyncio.wait_for(asyncio.gather(draining, task), 20)
    assert await shown(database, flying, waiting) == ["ann SENT", "ann PENDING"]


async def test_drain_returns_leases_that_do_not_end_in_time(database: Database, clock: FakeClock) -> None:
    await couple(database)
    await accept(database, message(), message())
    provider = ScriptedProvider(gated=True)
    async with running(make_worker(database, clock, provider), patience_s=0.1):
        await wait_until(lambda: len(provider.asked) == 2)
    assert {(d.state.value, d.attempts) for d in await deliveries(database)} == {("PENDING", 0)}
    assert await rows_of(database, "SELECT 1 FROM deliveries WHERE lease_token IS NOT NULL") == []


async def test_drain_ends_in_time_despite_a_claim_in_flight(database: Database, clock: FakeClock) -> None:
    await couple(database)
    await accept(database, message())
    slow, provider = SlowDatabase(database), ScriptedProvider(gated=True)
    worker = make_worker(cast(Database, slow), clock, provider)
    task = asyncio.ensure_future(worker.run())
    await wait_until(lambda: slow.waiting)
    draining = asyncio.ensure_future(worker.drain(0.1))
    await settle()
    slow.gate.set()
    await asyncio.wait_for(asyncio.gather(draining, task), 20)
    assert len(provider.asked) <= 1, "its attempt may be over before it has begun"
    assert {(d.state.value, d.attempts) for d in await deliveries(database)} == {("PENDING", 0)}


async def test_drain_does_not_wait_for_a_database_outage(database: Database, clock: FakeClock) -> None:
    refuses = FailingDatabase(database)
    refuses.error = DependencyDown("the database does not answer")
    worker = make_worker(refuses.as_database, clock, ScriptedProvider())
    task = asyncio.ensure_future(worker.run())
    await wait_until(lambda: refuses.refused)
    await asyncio.wait_for(asyncio.gather(worker.drain(60), task), 20)


async def test_backoff_of_claims_during_a_database_outage(database: Database, clock: FakeClock) -> None:
    refuses = FailingDatabase(database)
    refuses.error = DependencyDown("the database does not answer")
    worker = make_worker(refuses.as_database, clock, ScriptedProvider())
    async with running(worker):
        await wait_until(lambda: refuses.refused)
        for _ in range(20):
            worker.wake()
            await settle()
        assert refuses.refused == 1
        await clock.advance(0.5)
        assert refuses.refused == 2
