"""The pool's connections end by age and idleness, its callers wait for a bounded time by rank, and figures say so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import asyncpg
import pytest

from syncbeat_server.errors import DependencyDown, Overloaded
from syncbeat_server.ops.work_origin import WorkRank, fresh_context, method_origin, task_origin
from syncbeat_server.storage.postgres import database as postgres
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.storage.postgres.driver_errors import StatementRejected
from syncbeat_server.storage.postgres.time_limits import ConnectionLife
from tests.support.databases import DatabaseUrls
from tests.support.fake_clock import ahead, wait_until
from tests.support.process_rules import PATIENT
from tests.support.seed import cut_connections, value_of

pytestmark = pytest.mark.store

PID = "SELECT pg_backend_pid()"
LONG = 3_600.0
ORIGINS = {
    WorkRank.BACKGROUND: task_origin("Sweep.run"),
    WorkRank.CALL: method_origin("GetHint"),
    WorkRank.PROMISE: method_origin("PublishChanges", WorkRank.PROMISE),
}


@asynccontextmanager
async def opened(
    urls: DatabaseUrls, *, size: int = 1, life: ConnectionLife | None = None, wait_s: float = LONG
) -> AsyncIterator[Database]:
    timings = replace(PATIENT.database, longest_wait_s=wait_s)
    life = life or ConnectionLife(LONG, LONG)
    async with postgres.open_database(urls.app_url, size=size, name="limits", timings=timings, life=life) as database:
        yield database


async def backends(urls: DatabaseUrls) -> int:
    """Count the connections of the service that PostgreSQL has."""
    conn = await asyncpg.connect(urls.admin_url)
    try:
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND application_name = 'limits'"
        return int(await conn.fetchval(query, urls.name))
    finally:
        await conn.close()


async def test_connection_older_than_its_life_is_replaced(database_urls: DatabaseUrls) -> None:
    async with opened(database_urls, life=ConnectionLife(most_s=1_800.0, idle_s=LONG)) as database:
        first = await value_of(database, PID)
        with ahead(1_600.0):
            assert await value_of(database, PID) == first
        with ahead(1_801.0):
            assert await value_of(database, PID) == first, "it is closed after use, which waits for nothing"
            second = await value_of(database, PID)
        assert second != first
        assert await value_of(database, PID) == second
        assert await backends(database_urls) == 1


async def test_idle_connection_is_closed(database_urls: DatabaseUrls) -> None:
    async with opened(database_urls, size=3, life=ConnectionLife(most_s=LONG, idle_s=0.2)) as database:
        await asyncio.gather(*(value_of(database, "SELECT pg_sleep(0.05)") for _ in range(3)))

        async def none_left() -> bool:
            return await backends(database_urls) == 0

        await wait_until(none_left, what="all were closed")
        assert database.pool_status.connections == 0
        assert await value_of(database, "SELECT 1") == 1


async def test_idle_connection_that_is_closed_leaves_the_others_alone(database_urls: DatabaseUrls) -> None:
    async with opened(database_urls, size=2, life=ConnectionLife(most_s=LONG, idle_s=0.2)) as database:
        await asyncio.gather(*(value_of(database, "SELECT pg_sleep(0.05)") for _ in range(2)))
        used = set()

        async def one_left() -> bool:
            used.add(await value_of(database, "SELECT pg_backend_pid()"))
            return database.pool_status.connections == 1

        await wait_until(one_left, what="the spare one was closed")
        used.add(await value_of(database, "SELECT pg_backend_pid()"))
        assert len(used) == 1


async def ask(database: Database, rank: WorkRank) -> int:
    """One statement of work of this rank."""
    task = asyncio.get_running_loop().create_task(value_of(database, "SELECT 1"), context=fresh_context(ORIGINS[rank]))
    return int(await task)


async def hold(database: Database, over: asyncio.Event) -> None:
    async with database._acquired():
        await over.wait()


async def test_wait_for_a_connection_is_shorter_for_work_that_can_come_again(database_urls: DatabaseUrls) -> None:
    async with opened(database_urls, size=2, wait_s=2.0) as database:
        ended: list[WorkRank] = []

        async def shed(rank: WorkRank) -> None:
            with pytest.raises(Overloaded) as raised:
                await ask(database, rank)
            assert 1.0 <= raised.value.retry_after_s <= 2.0
            ended.append(rank)

        first_over, over = asyncio.Event(), asyncio.Event()
        holders = [asyncio.create_task(hold(database, each)) for each in (first_over, over)]
        await wait_until(lambda: database.pool_status.in_use == 2)
        context = fresh_context(ORIGINS[WorkRank.PROMISE])
        holders.append(asyncio.get_running_loop().create_task(hold(database, over), context=context))
        await wait_until(lambda: database.waiting == 1)
        waiting = [asyncio.create_task(shed(rank)) for rank in reversed(WorkRank)]
        await wait_until(lambda: database.waiting == 4)
        first_over.set()  # it goes to who waits already, and shows that the database answers
        await asyncio.gather(*waiting)
        over.set()
        await asyncio.gather(*holders)
        assert ended == sorted(WorkRank)
        assert database.pool_figures.shed == dict.fromkeys(WorkRank, 1)


async def test_wait_for_a_connection_that_nobody_gives_back_is_an_outage(database_urls: DatabaseUrls) -> None:
    async with opened(database_urls, wait_s=0.1) as database, database._acquired():
        with pytest.raises(DependencyDown):
            await ask(database, WorkRank.CALL)


async def test_pool_figures_count_what_it_does(database_urls: DatabaseUrls) -> None:
    async with opened(database_urls, size=2) as database:
        async with database._acquired(), database._acquired():
            waiter = asyncio.create_task(value_of(database, "SELECT 1"))
            await wait_until(lambda: database.waiting == 1)
            status = database.pool_status
            assert (status.size, status.connections, status.in_use, status.waiters) == (2, 2, 2, 1)
        await waiter
        status, figures = database.pool_status, database.pool_figures
        assert (status.in_use, status.waiters) == (0, 0)
        assert 0 < status.acquire_p95_s < LONG
        assert (figures.requests, figures.failures) == (1, 0)
        assert sum(figures.acquire_buckets) == 4  # with that of the start
        with ahead(61.0):
            assert database.pool_status.acquire_p95_s == 0.0, "of the last minute"


async def test_pool_figures_count_failures_of_the_database_alone(database_urls: DatabaseUrls) -> None:
    async with opened(database_urls) as database:
        with pytest.raises(StatementRejected):
            await value_of(database, "SELECT 1 / 0")
        assert database.pool_figures.failures == 0
        assert not database.pool_figures.failed.is_set()

        async def cut_off() -> None:
            async with database.connection() as conn:
                await cut_connections(database_urls)
                await conn.fetchval("SELECT 1")

        with pytest.raises(DependencyDown):
            await cut_off()
        assert database.pool_figures.failures == 1
        assert database.pool_figures.failed.is_set()
