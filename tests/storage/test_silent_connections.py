"""Tests how calls end whose connection to PostgreSQL goes silent: in time, as those of a database that is away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from syncbeat_server.errors import DependencyDown
from syncbeat_server.resilience.breaker import BreakerState
from syncbeat_server.runtime.deadline import set_deadline
from syncbeat_server.storage.postgres import database as postgres
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.storage.postgres.driver_errors import StatementTimeout
from syncbeat_server.storage.postgres.time_limits import DatabaseTimings
from tests.support.databases import DatabaseUrls, open_database, socket_of, url_at
from tests.support.fake_clock import wait_until
from tests.support.tcp_relays import Fault, Relay, relayed

pytestmark = pytest.mark.store

CALL_S = 10.0


@pytest.fixture
async def relay(database_urls: DatabaseUrls) -> AsyncIterator[Relay]:
    async with relayed(socket_of(database_urls.app_url)) as opened:
        yield opened


@pytest.fixture
async def distant(database_urls: DatabaseUrls, relay: Relay) -> AsyncIterator[Database]:
    """The database behind the relay, with connections that have worked."""
    async with open_database(url_at(database_urls.app_url, relay.address), size=4, name="test") as opened:
        await asyncio.gather(*(write(opened) for _ in range(4)))
        yield opened


async def write(database: Database) -> None:
    async with database.transaction() as conn:
        await conn.fetchval("SELECT 1")


async def read(database: Database) -> None:
    async with database.connection() as conn:
        await conn.fetchval("SELECT 1")


def state_of(database: Database) -> BreakerState:
    return database.breaker.state


async def ends_with(database: Database, *, reads: bool = False, left_s: float = CALL_S) -> tuple[BaseException, float]:
    """Make a call with so much time; return its error, and the seconds that it took."""

    async def call() -> None:
        set_deadline(left_s)
        await (read(database) if reads else write(database))

    began_s = time.monotonic()
    (error,) = await asyncio.gather(asyncio.ensure_future(call()), return_exceptions=True)
    assert error is not None
    return error, time.monotonic() - began_s


@pytest.mark.parametrize("reads", [True, False])
async def test_black_hole_ends_calls_inside_statements_before_their_deadlines(
    distant: Database, relay: Relay, reads: bool
) -> None:
    relay.begin(Fault.BLACK_HOLE)
    error, took_s = await ends_with(distant, reads=reads)
    assert isinstance(error, DependencyDown)
    assert took_s < CALL_S
    assert state_of(distant) is BreakerState.OPEN
    relay.end()
    await wait_until(lambda: state_of(distant) is BreakerState.CLOSED)
    await write(distant)


async def test_silent_connection_of_a_server_that_is_there_ends_its_transaction_in_time(
    distant: Database, relay: Relay
) -> None:
    relay.begin(Fault.HALF_OPEN)
    error, took_s = await ends_with(distant, left_s=2.0)
    assert isinstance(error, DependencyDown)
    assert not isinstance(error, StatementTimeout)
    assert took_s < 2.0
    await write(distant)


async def test_slow_network_is_not_taken_for_a_server_that_is_away(distant: Database, relay: Relay) -> None:
    relay.begin(Fault.LATENCY)
    async with distant.transaction() as conn:
        for _ in range(5):
            await conn.fetchval("SELECT 1")
    await asyncio.gather(*(write(distant) for _ in range(4)))
    relay.end()
    assert distant.breaker.last_opened_at is None
    await write(distant)


async def test_slow_statement_is_not_taken_for_a_silent_connection(distant: Database) -> None:
    async with distant.transaction() as conn:
        await conn.fetchval("SELECT pg_sleep(4)")
    assert state_of(distant) is BreakerState.CLOSED


async def test_slow_single_statement_leaves_the_other_connections_alone(database_urls: DatabaseUrls) -> None:
    timings = replace(DatabaseTimings(), single_answer_s=1.5)
    async with postgres.open_database(database_urls.app_url, size=3, name="test", timings=timings) as database:

        async def process(seconds: float = 0.0) -> int:
            async with database.connection() as conn:
                row = await conn.fetchrow("SELECT pg_backend_pid() AS pid, pg_sleep($1)", seconds)
                assert row is not None
                return int(row["pid"])

        processes = set(await asyncio.gather(*(process(0.2) for _ in range(3))))
        slow = asyncio.ensure_future(process(60.0))
        while not slow.done():
            await process()
        assert isinstance(slow.exception(), StatementTimeout)
        assert await process() in processes


async def test_silent_connection_has_those_as_old_replaced(distant: Database, relay: Relay) -> None:
    relay.begin(Fault.HALF_OPEN)
    await ends_with(distant, left_s=2.0)
    async with asyncio.timeout(2.0):
        for _ in range(4):
            await write(distant)
