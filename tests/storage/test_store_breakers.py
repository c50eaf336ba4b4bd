"""Tests that calls fail at once while a store is away, and work again within seconds after it is back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from syncbeat_devtools.embedded import EmbeddedStores
from syncbeat_server.clock import SystemClock
from syncbeat_server.errors import CircuitOpen, DependencyDown
from syncbeat_server.resilience.breaker import BreakerState
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.storage.redis.bus import RedisBus, open_redis
from syncbeat_server.storage.redis.time_limits import RedisTimings
from tests.support.databases import DatabaseUrls, open_database
from tests.support.fake_clock import wait_until

pytestmark = pytest.mark.store

CALLS = 200
RECOVERED_S = 5.0


async def ask(database: Database) -> None:
    async with database.connection() as conn:
        await conn.fetchval("SELECT 1")


async def works(database: Database) -> bool:
    try:
        await ask(database)
    except DependencyDown:
        return False
    return True


async def test_postgres_outage_fails_calls_at_once_and_is_over_in_seconds(
    stores: EmbeddedStores, database_urls: DatabaseUrls
) -> None:
    async with open_database(database_urls.app_url, size=4, name="test") as database:
        await asyncio.gather(*(ask(database) for _ in range(4)))
        stores.kill_postgres()
        try:
            await asyncio.gather(*(ask(database) for _ in range(4)), return_exceptions=True)
            await wait_until(lambda: database.breaker.state is BreakerState.OPEN)
            before = time.process_time()
            refused = await asyncio.gather(*(ask(database) for _ in range(CALLS)), return_exceptions=True)
            assert {type(one) for one in refused} == {CircuitOpen}
            assert (time.process_time() - before) / CALLS < 0.002
        finally:
            stores.start_postgres()
        back_at = time.monotonic()
        await wait_until(lambda: works(database))
        assert time.monotonic() - back_at < RECOVERED_S
        await asyncio.gather(*(ask(database) for _ in range(8)))


async def test_postgres_statement_that_fails_opens_nothing(database_urls: DatabaseUrls) -> None:
    async with open_database(database_urls.app_url, size=2, name="test") as database:
        for _ in range(3):
            async with database.connection() as conn:
                pid = await conn.fetchval("SELECT pg_backend_pid()")
            with pytest.raises(DependencyDown):
                async with database.connection() as conn:
                    await conn.fetchval("SELECT pg_terminate_backend(pg_backend_pid())")
            assert pid
            await ask(database)
        assert database.breaker.state is BreakerState.CLOSED


@asynccontextmanager
async def silent_server() -> AsyncIterator[int]:
    """Accept connections and never answer."""
    held: list[asyncio.StreamWriter] = []

    async def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held.append(writer)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in held:
            writer.close()


async def test_redis_that_never_answers_is_waited_for_once() -> None:
    timings = RedisTimings(call_s=0.3)
    async with (
        silent_server() as port,
        open_redis(f"redis://127.0.0.1:{port}/0", SystemClock(), timings=timings) as bus,
    ):
        with pytest.raises(DependencyDown):
            await bus.read("key")
        await wait_until(lambda: bus.breaker.state is BreakerState.OPEN)
        began = time.monotonic()
        refused = await asyncio.gather(*(bus.read("key") for _ in range(CALLS)), return_exceptions=True)
        assert {type(one) for one in refused} == {CircuitOpen}
        assert time.monotonic() - began < timings.call_s * CALLS / 10, "nobody waits"


async def test_redis_outage_is_over_in_seconds(stores: EmbeddedStores, redis_url: str) -> None:
    async def reads(bus: RedisBus) -> bool:
        try:
            await bus.read("key")
        except DependencyDown:
            return False
        return True

    async with open_redis(redis_url, SystemClock()) as bus:
        assert await reads(bus)
        stores.kill_redis()
        try:
            assert not await reads(bus)
            await wait_until(lambda: bus.breaker.state is BreakerState.OPEN)
        finally:
            stores.start_redis()
        back_at = time.monotonic()
        await wait_until(lambda: reads(bus))
        assert time.monotonic() - back_at < RECOVERED_S
