"""A process that is stopped between the two parts of a statement keeps neither its session nor its locks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.storage.postgres.pool.connection_pool import PooledConnection
from syncbeat_server.storage.postgres.stuck_sessions import end_stuck_sessions, watch_sessions
from syncbeat_server.storage.postgres.time_limits import DatabaseTimings
from tests.support.databases import DatabaseUrls
from tests.support.fake_clock import FakeClock
from tests.support.seed import add_device, until, value_of

pytestmark = pytest.mark.store


@asynccontextmanager
async def stuck(
    urls: DatabaseUrls, name: str, begin: str = "BEGIN", holds: str = "SELECT 1 FROM devices FOR UPDATE"
) -> AsyncIterator[int]:
    """A session that has locked all devices and waits for the rest of its next statement."""
    conn: Any = await asyncpg.connect(urls.app_url, statement_cache_size=0, server_settings={"application_name": name})
    try:
        await conn.execute(begin)
        await conn.execute(holds)
        await conn.prepare("SELECT 1")
        yield conn.get_server_pid()
    finally:
        conn.terminate()


async def state_of(database: Database, urls: DatabaseUrls, pid: int) -> str:
    conn = await asyncpg.connect(urls.admin_url)
    try:
        row = await conn.fetchrow("SELECT state, wait_event FROM pg_stat_activity WHERE pid = $1", pid)
    finally:
        await conn.close()
    return "gone" if row is None else f"{row['state']} {row['wait_event']}"


async def test_stuck_session_of_the_service_is_terminated(database: Database, database_urls: DatabaseUrls) -> None:
    await add_device(database, "ann")
    async with (
        stuck(database_urls, "syncbeat 1") as pid,
        stuck(database_urls, "another program", holds="SELECT 1") as foreign,
    ):
        assert await state_of(database, database_urls, pid) == "active ClientRead"
        async with database.connection() as conn:
            assert await end_stuck_sessions(conn, 3_600.0) == 0
            assert await end_stuck_sessions(conn, 0.0) == 1

        async def gone() -> bool:
            return await state_of(database, database_urls, pid) == "gone"

        await until(gone, what="its session is ended")
        assert await state_of(database, database_urls, foreign) != "gone"


async def test_stuck_session_is_terminated_by_postgres_itself(database: Database, database_urls: DatabaseUrls) -> None:
    await add_device(database, "ann")
    begin = DatabaseTimings(transaction_ms=50).begin().bounded
    async with stuck(database_urls, "syncbeat 1", begin) as pid:

        async def gone() -> bool:
            return await state_of(database, database_urls, pid) == "gone"

        await until(gone, what="its transaction has taken too long")
    assert await value_of(database, "SELECT count(*) FROM (SELECT FROM devices FOR UPDATE) AS locked") == 1


async def test_stuck_session_scan_runs_only_where_postgres_does_not(database: Database, clock: FakeClock) -> None:
    assert await value_of(database, "SELECT current_setting('server_version_num')::int") >= 170_000
    await watch_sessions(database, clock)  # it returns


@pytest.mark.parametrize(("version", "bounds"), [(15, False), (16, False), (17, True), (18, True)])
def test_transaction_timeout_is_set_where_supported(version: int, *, bounds: bool) -> None:
    class Versioned(PooledConnection):
        def __init__(self) -> None:
            pass

        def __del__(self) -> None:
            pass

        def get_server_version(self) -> asyncpg.types.ServerVersion:
            return asyncpg.types.ServerVersion(version, 0, 0, "final", 0)

    assert Versioned().bounds_transactions is bounds
