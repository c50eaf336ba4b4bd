"""Tests that PostgreSQL ends the statements of a call before its deadline, and those of a caller who has gone."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from syncbeat_server.errors import DeadlineExceeded
from syncbeat_server.runtime.deadline import set_deadline
from syncbeat_server.storage.postgres.database import Connection, Database
from syncbeat_server.storage.postgres.time_limits import BeginsInTime, DatabaseTimings
from tests.support.databases import DatabaseUrls, run_sql
from tests.support.fake_clock import wait_until
from tests.support.seed import value_of

pytestmark = pytest.mark.store

SLEEPING = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(3%' AND pid <> pg_backend_pid()"


async def timeout_ms(conn: Connection) -> float:
    found: str = await conn.fetchval("SELECT setting FROM pg_settings WHERE name = 'statement_timeout'")
    return float(found)


@pytest.mark.parametrize("left_s", [0.4, 3.0, 8.0, 60.0])
async def test_statement_timeout_is_just_below_the_deadline(database: Database, left_s: float) -> None:
    async def call() -> float:
        set_deadline(left_s)
        async with database.transaction() as conn:
            return await timeout_ms(conn)

    found = await asyncio.ensure_future(call())
    most = min(0.85 * left_s, 8.0) * 1000
    assert 0.8 * most < found <= most
    async with database.transaction() as conn:
        assert await timeout_ms(conn) == 8_000, "no deadline is left behind on the connection"


async def test_statement_ends_by_itself_before_the_deadline(database: Database) -> None:
    async def call() -> None:
        set_deadline(0.5)
        async with database.transaction() as conn:
            await conn.execute("SELECT pg_sleep(30)")

    with pytest.raises(DeadlineExceeded):
        await asyncio.ensure_future(call())


async def test_transaction_without_a_chance_does_not_begin(database: Database) -> None:
    begun = False

    async def call() -> None:
        nonlocal begun
        set_deadline(0.001)
        async with database.transaction():
            begun = True

    with pytest.raises(DeadlineExceeded):
        await asyncio.ensure_future(call())
    assert not begun


def test_statement_timeouts_are_few() -> None:
    begins = BeginsInTime(DatabaseTimings())
    texts = {begin.plain for ms in range(20_000) if (begin := begins.within(ms / 1000)) is not None}
    assert len(texts) < 50
    assert begins.within(0.01) is None


@pytest.mark.parametrize("in_transaction", [True, False])
async def test_cancelled_call_leaves_no_statement_and_no_write(
    database: Database, database_urls: DatabaseUrls, in_transaction: bool
) -> None:
    await run_sql(database_urls.owner_url, "CREATE TABLE notes (note text)", "GRANT ALL ON notes TO PUBLIC")
    statement = "INSERT INTO notes SELECT 'late' FROM pg_sleep(30)"

    async def call() -> None:
        if in_transaction:
            async with database.transaction() as conn:
                await conn.execute("INSERT INTO notes VALUES ('early')")
                await conn.execute(statement)
        else:
            async with database.connection() as conn:
                await conn.execute(statement)

    calling = asyncio.ensure_future(call())

    async def is_sleeping() -> bool:
        return bool(await value_of(database, SLEEPING + " AND state = 'active'"))

    async def is_over() -> bool:
        return not await is_sleeping()

    await wait_until(is_sleeping)
    calling.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await calling
    await wait_until(is_over, timeout_s=10.0)
    assert await value_of(database, "SELECT count(*) FROM notes") == 0


async def test_calls_with_short_deadlines_cost_a_healthy_server_no_connection(database: Database) -> None:
    async def backend() -> int:
        async with database.connection() as conn:
            found: int = await conn.fetchval("SELECT pg_backend_pid()")
            return found

    async def call() -> None:
        set_deadline(0.05)
        async with database.transaction() as conn:
            await conn.execute("SELECT pg_sleep(30)")

    before = await backend()
    for _ in range(20):
        with pytest.raises(DeadlineExceeded):
            await asyncio.ensure_future(call())
    assert await backend() == before


@pytest.mark.parametrize("statement_s", [0.02, 0.05, 1.0, 1.7, 8.0])
def test_answer_is_awaited_beyond_the_servers_own_limit(statement_s: float) -> None:
    answer_s = DatabaseTimings().begin(statement_s).answer_s
    assert answer_s >= statement_s + 0.2
    assert answer_s <= max(statement_s / 0.85, 0.25 + statement_s), "and not until the deadline of a long call"
