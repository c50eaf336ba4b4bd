"""A connection that the network lost, and neither side is told: found out once, and not by each caller anew."""

from __future__ import annotations

import asyncio

import pytest

from syncbeat_server.storage.postgres.database import Database
from tests.support.databases import DatabaseUrls, open_database, socket_of, url_at
from tests.support.seed import value_of
from tests.support.tcp_relays import Fault, relayed

pytestmark = [pytest.mark.store, pytest.mark.slow]

SIZE = 4
AT_ONCE_S = 5.0  # half of what a statement waits for its answer


async def all_at_once(database: Database) -> None:
    """Use every connection of the pool at the same time."""
    meet = asyncio.Barrier(SIZE)

    async def use() -> None:
        async with database.connection() as conn:
            await meet.wait()
            assert await conn.fetchval("SELECT 1") == 1

    await asyncio.gather(*(use() for _ in range(SIZE)))


async def test_silent_connection_makes_the_pool_replace_those_as_old(database_urls: DatabaseUrls) -> None:
    async with relayed(socket_of(database_urls.app_url)) as relay:
        url = url_at(database_urls.app_url, relay.address)
        async with open_database(url, size=SIZE, name="test") as database:
            await all_at_once(database)
            relay.begin(Fault.HALF_OPEN)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2), database.transaction() as conn:
                    await conn.fetchval("SELECT 1")
            async with asyncio.timeout(AT_ONCE_S):
                await all_at_once(database)


async def test_silent_connection_that_was_replaced_leaves_new_ones_alone(database_urls: DatabaseUrls) -> None:
    async with relayed(socket_of(database_urls.app_url)) as relay:
        url = url_at(database_urls.app_url, relay.address)
        async with open_database(url, size=2, name="test") as database:
            relay.begin(Fault.HALF_OPEN)

            async def give_up() -> None:
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.2), database.transaction() as conn:
                        await conn.fetchval("SELECT 1")

            await give_up()
            backend = await value_of(database, "SELECT pg_backend_pid()")
            assert await value_of(database, "SELECT pg_backend_pid()") == backend
