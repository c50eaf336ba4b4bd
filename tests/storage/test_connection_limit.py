"""A server that allows no more connections: callers wait for those that are open, and the server is asked rarely."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import replace
from typing import Any

import asyncpg
import pytest

from syncbeat_server.errors import DependencyDown
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.storage.postgres.hosts import Hosts
from syncbeat_server.storage.postgres.pool import connection_refusals
from tests.support.databases import DatabaseUrls, open_database, run_sql
from tests.support.fake_clock import wait_until
from tests.support.process_rules import PATIENT
from tests.support.seed import value_of

pytestmark = pytest.mark.store

SIZE = 8


async def limit(urls: DatabaseUrls, connections: int) -> None:
    """Allow that many connections of the service; -1 for any number."""
    await run_sql(urls.admin_url, f"ALTER DATABASE {urls.name} CONNECTION LIMIT {connections}")


@pytest.fixture
async def wide(database_urls: DatabaseUrls) -> AsyncIterator[Database]:
    """A pool of more connections than the server will allow, whose callers wait though the machine is busy."""
    async with opened(database_urls, connect_s=30.0) as pool:
        yield pool


def opened(urls: DatabaseUrls, connect_s: float, first_pause_s: float = 0.1) -> AbstractAsyncContextManager[Database]:
    """Open such a pool of other timings."""
    return open_database(
        urls.app_url,
        size=SIZE,
        name="wide",
        timings=replace(PATIENT.database, connect_s=connect_s, longest_wait_s=connect_s, first_pause_s=first_pause_s),
    )


async def backends(urls: DatabaseUrls) -> list[int]:
    conn = await asyncpg.connect(urls.admin_url)
    try:
        rows = await conn.fetch(
            "SELECT pid FROM pg_stat_activity WHERE datname = $1 AND usename = 'syncbeat_app' ORDER BY pid", urls.name
        )
        return [row["pid"] for row in rows]
    finally:
        await conn.close()


async def answered(calls: Sequence[Awaitable[Any]]) -> list[Any]:
    return await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 60)


async def in_transaction(database: Database, number: int) -> int:
    async with database.transaction() as conn:
        return int(await conn.fetchval("SELECT $1::int FROM pg_sleep(0.002)", number))


async def hold_all(stack: AsyncExitStack, database: Database, count: int) -> None:
    for _ in range(count):
        await stack.enter_async_context(database._acquired())


async def test_connection_limit_is_waited_out_on_open_connections(wide: Database, database_urls: DatabaseUrls) -> None:
    await limit(database_urls, 2)
    numbers = range(200)
    single = [value_of(wide, "SELECT $1::int", number) for number in numbers]
    whole = [in_transaction(wide, number) for number in numbers]
    assert await answered([*single, *whole]) == [*numbers, *numbers]
    assert len(await backends(database_urls)) <= 2
    assert wide.waiting == 0


async def test_connection_limit_with_one_idle_connection_uses_it(wide: Database, database_urls: DatabaseUrls) -> None:
    async with AsyncExitStack() as stack:
        await hold_all(stack, wide, SIZE)
    survivor, *others = await backends(database_urls)
    assert len(others) == SIZE - 1
    await limit(database_urls, 1)
    conn = await asyncpg.connect(database_urls.admin_url)
    try:
        await conn.fetch("SELECT pg_terminate_backend(pid) FROM unnest($1::int[]) AS pid", others)
    finally:
        await conn.close()
    await wait_until(lambda: wide._pool.driver.get_size() == 1, what="the pool knows what it has lost")
    assert await answered([value_of(wide, "SELECT pg_backend_pid()") for _ in range(50)]) == [survivor] * 50


async def test_connection_limit_ends_when_the_server_allows_more(wide: Database, database_urls: DatabaseUrls) -> None:
    await limit(database_urls, 1)
    assert await answered([in_transaction(wide, number) for number in range(10)]) == list(range(10))
    await limit(database_urls, -1)

    async def both_at_once() -> None:
        met = asyncio.Barrier(2)

        async def one() -> None:
            async with wide._acquired():
                await met.wait()

        await asyncio.gather(one(), one())

    await asyncio.wait_for(both_at_once(), 30)
    assert wide._pool._refusal is None


async def test_connection_limit_with_none_open_is_an_outage(wide: Database, database_urls: DatabaseUrls) -> None:
    async with opened(database_urls, connect_s=0.5) as impatient:
        await limit(database_urls, 0)
        await impatient._pool.driver.expire_connections()
        with pytest.raises(DependencyDown):
            await value_of(impatient, "SELECT 1")
    await wide._pool.driver.expire_connections()
    waiting = asyncio.ensure_future(value_of(wide, "SELECT 1"))
    await wait_until(lambda: wide._pool._queue, what="it waits to try again")
    await limit(database_urls, -1)
    assert await waiting == 1


async def test_connection_limit_backoff_does_not_hammer_the_server(
    database_urls: DatabaseUrls, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []
    connect = Hosts.connect

    async def counted(hosts: Hosts, *address: Any, **settings: Any) -> asyncpg.Connection:
        asked.append(asyncio.get_running_loop().time())
        return await connect(hosts, *address, **settings)

    async with opened(database_urls, connect_s=3.0) as wide:
        monkeypatch.setattr(Hosts, "connect", counted)
        await limit(database_urls, 1)
        began = asyncio.get_running_loop().time()
        async with wide._acquired():
            await answered([value_of(wide, "SELECT 1") for _ in range(300)])
        took_s = asyncio.get_running_loop().time() - began
    # Who comes before the first refusal is known asks too, one for each place of the pool; then one asks for all, after
    # 0.05 s at the least, and rarer each time: 0.1, 0.2, 0.4, 0.5 s. Besides, the server is asked once a second
    # if it is there, while a connection is lent for over 2 s. That is for 3 s, and for longer on a busy machine.
    assert SIZE - 1 < len(asked) <= SIZE + 4 + 3 * took_s, f"{took_s} s"


async def test_connection_limit_queue_skips_cancelled_callers(database_urls: DatabaseUrls) -> None:
    # Nobody asks the server again within the test: only a turn helps.
    async with opened(database_urls, connect_s=30.0, first_pause_s=60.0) as wide:
        await limit(database_urls, 1)
        async with wide._acquired():
            leaver = asyncio.ensure_future(value_of(wide, "SELECT 1"))
            await wait_until(lambda: len(wide._pool._queue) == 1)
            stayer = asyncio.ensure_future(value_of(wide, "SELECT 2"))
            await wait_until(lambda: len(wide._pool._queue) == 2)
        leaver.cancel()  # in the moment in which its turn has come
        await asyncio.wait([leaver], timeout=30)
        assert await asyncio.wait_for(stayer, 30) == 2


@pytest.mark.parametrize(
    ("code", "said", "expected"),
    [
        ("53300", "sorry, too many clients already", True),
        ("53300", "remaining connection slots are reserved for roles with the SUPERUSER attribute", True),
        ("08P01", "no more connections allowed (max_client_conn)", True),
        ("XX000", "Max client connections reached", True),
        ("XX000", "MaxClientsInSessionMode: max clients reached", True),
        ("08P01", "invalid frontend message", False),
        ("28P01", "password authentication failed: too many connections", False),
    ],
)
def test_connection_limit_is_recognised_by_code_and_pooler_text(code: str, said: str, *, expected: bool) -> None:
    error = asyncpg.PostgresError.new({"S": "FATAL", "C": code, "M": said})
    assert connection_refusals.is_too_many(error) is expected
