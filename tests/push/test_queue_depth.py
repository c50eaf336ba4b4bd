"""Tests the figures of a queue that operators ask for: what is not done by state, and no more rows than allowed."""

from __future__ import annotations

import uuid
from datetime import timedelta

import pytest

from syncbeat_server.push.model import DeliveryState, QueueDepth
from syncbeat_server.push.store import queue_figures
from syncbeat_server.storage.postgres.database import Database
from tests.support.build import APP
from tests.support.fake_clock import FakeClock
from tests.support.seed import accept, add_device, claim, message, value_of

pytestmark = pytest.mark.store

LEASE = str(uuid.UUID(int=1))


async def depth(database: Database, most: int = 100, jobs: int = 100, app: str = APP) -> QueueDepth:
    async with database.connection() as conn:
        return await queue_figures.queue_depth(conn, app, most, jobs)


async def test_queue_depth_counts_what_is_not_done_by_state(database: Database, clock: FakeClock) -> None:
    await add_device(database, "ann")
    assert await depth(database) == QueueDepth({}, None, truncated=False)
    await accept(database, *(message() for _ in range(5)))
    await clock.advance(7.0)
    assert await depth(database) == QueueDepth({DeliveryState.PENDING: 5}, 7.0, truncated=False)
    await claim(database, LEASE, limit=2)
    assert (await depth(database)).counts == {DeliveryState.PENDING: 3, DeliveryState.IN_FLIGHT: 2}
    end = "UPDATE deliveries SET state = 'SENT', lease_token = NULL, lease_until = NULL WHERE state = 'IN_FLIGHT'"
    await value_of(database, end)
    assert (await depth(database)).counts == {DeliveryState.PENDING: 3}
    assert (await depth(database, app="other")).counts == {}


async def test_queue_depth_reads_so_many_rows(database: Database) -> None:
    await add_device(database, "ann")
    await accept(database, *(message() for _ in range(12)))
    for most, counted, truncated in ((12, 12, False), (10, 11, True)):
        found = await depth(database, most=most)
        assert (found.counts, found.truncated) == ({DeliveryState.PENDING: counted}, truncated)


async def test_queue_depth_counts_so_many_jobs(database: Database, clock: FakeClock) -> None:
    await add_device(database, "ann")
    await accept(database, *(message(due_at=clock.now() + timedelta(hours=1)) for _ in range(3)))
    assert not (await depth(database, jobs=3)).truncated
    assert (await depth(database, jobs=2)).truncated


async def test_queue_depth_of_scheduled_notifications_is_estimated(database: Database, clock: FakeClock) -> None:
    await add_device(database, "ann")
    await accept(database, message(due_at=clock.now() + timedelta(hours=1)))
    for passed_s, late_s in ((0.0, None), (3_630.0, 30.0)):
        await clock.advance(passed_s)
        assert await depth(database) == QueueDepth({DeliveryState.SCHEDULED: 1}, late_s, truncated=False)
