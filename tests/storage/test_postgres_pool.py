"""The pool: works with one connection, leaks nothing between transactions, and comes back after an outage."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial

import asyncpg
import pytest

from syncbeat_devtools.embedded import EmbeddedStores
from syncbeat_server.errors import DependencyDown, NotFound
from syncbeat_server.ops.logs import request_id
from syncbeat_server.storage.batcher import Batcher, BatchRule
from syncbeat_server.storage.postgres.database import Database, RowOwner, leave_user_role, take_user_role
from syncbeat_server.storage.postgres.driver_errors import Conflict, LockTimeout, StatementRejected
from tests.support.build import APP
from tests.support.databases import DatabaseUrls, open_database, run_sql
from tests.support.fake_clock import wait_until
from tests.support.process_rules import PATIENT
from tests.support.seed import add_device, cut_connections, rows_of, until, value_of

pytestmark = pytest.mark.store

WHO = """SELECT current_user::text, current_setting('syncbeat.user_id', true),
                current_setting('syncbeat.app_id', true)"""
SERVICE = ("syncbeat_app", "", "")
ANN = RowOwner(APP, "ann")


@pytest.fixture
async def single(database_urls: DatabaseUrls) -> AsyncIterator[Database]:
    """A pool of one connection, for which whoever wants it waits until it is their turn."""
    async with open_database(
        database_urls.app_url, size=1, name="single", timings=replace(PATIENT.database, connect_s=20.0)
    ) as opened:
        yield opened


async def who(database: Database) -> tuple[str, str, str]:
    ((user, user_id, app_id),) = await rows_of(database, WHO)
    return user, user_id or "", app_id or ""


async def test_pool_of_one_connection_serves_many_calls(single: Database) -> None:
    async def in_transaction(number: int) -> int:
        async with single.transaction() as conn:
            return int(await conn.fetchval("SELECT $1::int", number))

    async def as_user(number: int) -> str:
        async with single.transaction(RowOwner(APP, f"user-{number}")) as conn:
            return str(await conn.fetchval("SELECT syncbeat_caller()"))

    numbers = range(50)
    calls = asyncio.gather(
        asyncio.gather(*map(in_transaction, numbers)),
        asyncio.gather(*map(as_user, numbers)),
        asyncio.gather(*(value_of(single, "SELECT $1::int", number) for number in numbers)),
    )
    assert await asyncio.wait_for(calls, 20) == [
        list(numbers),
        [f"user-{number}" for number in numbers],
        list(numbers),
    ]
    assert (single._pool.driver.get_size(), single._pool.driver.get_idle_size()) == (1, 1)


async def test_pool_of_one_connection_is_enough_for_batches(single: Database) -> None:
    async def work(numbers: object) -> list[int | Exception]:
        async with single.transaction() as conn:
            rows = await conn.fetch("SELECT n * 2 AS n FROM unnest($1::int[]) AS k (n)", numbers)
        return [row["n"] for row in rows]

    batcher: Batcher[int, int] = Batcher(work, BatchRule(max_batch=8))
    calls = asyncio.gather(*(batcher.submit(number) for number in range(100)))
    assert await asyncio.wait_for(calls, 20) == [number * 2 for number in range(100)]


async def test_transaction_commits_whole_or_not_at_all(single: Database) -> None:
    async def write(*, fail: bool) -> None:
        async with single.transaction() as conn:
            await conn.execute("INSERT INTO scopes (app_id, scope, created_at) VALUES ('a', 's', now())")
            if fail:
                raise NotFound("no")

    with pytest.raises(NotFound):
        await write(fail=True)
    assert await value_of(single, "SELECT count(*) FROM scopes") == 0
    await write(fail=False)
    assert await value_of(single, "SELECT count(*) FROM scopes") == 1


async def test_user_transaction_sees_own_rows_and_leaks_nothing(single: Database) -> None:
    await add_device(single, "ann")
    await add_device(single, "bob")
    devices = "SELECT user_id FROM devices"
    async with single.transaction(ANN) as conn:
        assert await conn.fetchval("SELECT current_user::text") == "syncbeat_user"
        assert [row["user_id"] for row in await conn.fetch(devices)] == ["ann"]
        await leave_user_role(conn)
        assert len(await conn.fetch(devices)) == 2
        await take_user_role(conn, RowOwner(APP, "bob"))
        assert [row["user_id"] for row in await conn.fetch(devices)] == ["bob"]
    assert await who(single) == SERVICE  # the same connection: there is no other
    assert len(await rows_of(single, devices)) == 2


@pytest.mark.parametrize("how", ["error", "cancelled", "rejected"])
async def test_user_role_ends_with_its_transaction(single: Database, database_urls: DatabaseUrls, how: str) -> None:
    inside = asyncio.Event()

    async def as_user() -> None:
        async with single.transaction(ANN) as conn:
            inside.set()
            if how == "error":
                raise NotFound("no")
            if how == "rejected":
                await conn.execute("SELECT 1 / 0")
            await conn.execute("SELECT pg_sleep(60)")

    running = asyncio.ensure_future(as_user())
    await inside.wait()
    if how == "cancelled":
        await until_asleep(database_urls)  # PostgreSQL passes over a cancellation that comes before its statement
        running.cancel()
    await asyncio.wait([running], timeout=20)
    assert running.done()
    assert running.cancelled() == (how == "cancelled")
    assert running.cancelled() or isinstance(running.exception(), NotFound | StatementRejected)
    assert await who(single) == SERVICE
    assert (single._pool.driver.get_size(), single._pool.driver.get_idle_size()) == (1, 1)


async def until_asleep(urls: DatabaseUrls) -> None:
    """Until a statement of this database sleeps."""
    async with open_database(urls.admin_url, size=1, name="looks on") as database:
        asleep = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"
        await until(partial(value_of, database, asleep), what="a statement sleeps")


async def test_cancellation_during_rollback_leaves_no_transaction_open(
    database_urls: DatabaseUrls,
) -> None:
    insert = "INSERT INTO scopes (app_id, scope, created_at) VALUES ('a', $1, now())"
    async with open_database(database_urls.app_url, size=1, name="cancelled") as database:
        for turns in range(12):
            inside = asyncio.Event()

            async def write(inside: asyncio.Event = inside, scope: str = f"scope-{turns}") -> None:
                async with database.transaction(RowOwner("a", "ann")) as conn:
                    await leave_user_role(conn)
                    await conn.execute(insert, scope)
                    inside.set()
                    await asyncio.Event().wait()

            running = asyncio.ensure_future(write())
            await inside.wait()
            running.cancel()
            for _ in range(turns):
                await asyncio.sleep(0)
            running.cancel()
            await asyncio.wait([running], timeout=20)
            assert running.cancelled()
            assert await who(database) == SERVICE
            assert await value_of(database, "SELECT count(*) FROM scopes") == 0


@pytest.mark.parametrize(
    ("statement", "sqlstate", "constraint"),
    [
        ("SELECT 1 / 0", "22012", ""),
        ("SELECT 'secret text'::int", "22P02", ""),
        ("INSERT INTO scopes (app_id, scope, created_at) VALUES ('a', NULL, now())", "23502", ""),
        (
            """INSERT INTO devices (app_id, user_id, device_id, platform, token_state, registered_at, updated_at)
               VALUES ('a', 'u', 'd', 'WINDOWS', 'NONE', now(), now())""",
            "23514",
            "devices_platform_check",
        ),
    ],
)
async def test_database_error_text_is_not_exposed(
    database: Database, statement: str, sqlstate: str, constraint: str
) -> None:
    with pytest.raises(StatementRejected) as raised:
        await value_of(database, statement)
    assert (raised.value.sqlstate, raised.value.constraint) == (sqlstate, constraint)
    assert raised.value.message == "a statement was rejected by the database"
    assert isinstance(raised.value.__cause__, asyncpg.PostgresError)  # for the log


async def test_database_type_error_is_no_outage(database: Database) -> None:
    with pytest.raises(StatementRejected):
        await value_of(database, "SELECT $1::int", 1 << 40)
    with pytest.raises(StatementRejected):
        await value_of(database, "SELECT $1::text", "a\0b")


async def test_statement_timeout_is_an_outage(database: Database) -> None:
    async def slow() -> None:
        async with database.transaction() as conn:
            await conn.execute("SET LOCAL statement_timeout = 20")
            await conn.execute("SELECT pg_sleep(60)")

    with pytest.raises(DependencyDown):
        await slow()


@pytest.mark.parametrize("timeout", ["idle_in_transaction_session_timeout", "transaction_timeout"])
async def test_transaction_timeout_is_an_outage_for_its_own_call(
    database: Database, database_urls: DatabaseUrls, timeout: str
) -> None:
    async def left_open() -> None:
        async with database.transaction() as conn:
            pid = await conn.fetchval("SELECT pg_backend_pid()")
            await conn.execute(f"SET LOCAL {timeout} = 20")
            gone = "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1)"
            async with open_database(database_urls.admin_url, size=1, name="looks on") as admin:
                await until(partial(value_of, admin, gone, pid), what="the session was ended")
            await conn.execute("SELECT 1")

    with pytest.raises(DependencyDown):
        await left_open()
    assert await works(database)


async def test_idle_session_timeout_is_no_outage(database_urls: DatabaseUrls) -> None:
    await run_sql(database_urls.admin_url, f"ALTER DATABASE {database_urls.name} SET idle_session_timeout = 50")
    async with open_database(database_urls.app_url, size=2, name="idle") as database:
        for _ in range(5):
            assert await value_of(database, "SELECT true")
            await wait_until(lambda: not database._pool.driver.get_size(), what="the server has ended it")


async def test_lock_timeout_is_reported(database: Database) -> None:
    await add_device(database, "ann")
    query = "SELECT 1 FROM devices FOR UPDATE"

    async def impatient() -> None:
        async with database.transaction() as conn:
            await conn.execute("SET LOCAL lock_timeout = 20")
            await conn.execute(query)

    async with database.transaction() as holder:
        await holder.execute(query)
        with pytest.raises(LockTimeout):
            await impatient()
    await impatient()


async def test_deadlock_is_a_conflict_for_one(database: Database, database_urls: DatabaseUrls) -> None:
    await add_device(database, "ann")
    await add_device(database, "bob")
    admin = await asyncpg.connect(database_urls.admin_url)
    await admin.execute(f"ALTER DATABASE {database_urls.name} SET deadlock_timeout = '20ms'")
    await admin.close()
    held = asyncio.Barrier(2)
    query = "SELECT 1 FROM devices WHERE user_id = $1 FOR UPDATE"

    async def lock(first: str, second: str, database: Database) -> None:
        async with database.transaction() as conn:
            await conn.execute(query, first)
            await held.wait()
            await conn.execute(query, second)

    async with open_database(database_urls.app_url, size=2, name="deadlock") as fresh:
        results = await asyncio.gather(lock("ann", "bob", fresh), lock("bob", "ann", fresh), return_exceptions=True)
    assert [type(result) for result in results if result is not None] == [Conflict]


async def test_reconnect_after_cut_connections(database: Database, database_urls: DatabaseUrls) -> None:
    async def busy() -> None:
        async with database.transaction() as conn:
            await conn.execute("SELECT pg_sleep(60)")

    running = asyncio.ensure_future(busy())
    await until_asleep(database_urls)
    assert await works(database), "by a second connection"
    assert await cut_connections(database_urls) >= 2
    with pytest.raises(DependencyDown):
        await running
    await until(partial(works, database), what="the pool has connections again")
    assert await who(database) == SERVICE


async def test_connection_error_is_not_chained_to_its_opener(
    database_urls: DatabaseUrls,
) -> None:
    told: list[str | None] = []

    async def call(database: Database) -> None:
        request_id.set("of a call that has ended")
        async with database._acquired() as first, database._acquired() as second:
            for conn in (first, second):
                conn.add_termination_listener(lambda _: told.append(request_id.get()))

    async with open_database(database_urls.app_url, size=4, name="opened by a call") as database:
        await database._pool.driver.expire_connections()
        await asyncio.create_task(call(database))
        # The one that was given up may not be gone yet.
        assert await cut_connections(database_urls) >= 2
        await wait_until(lambda: len(told) >= 2, what="both connections are lost")
        assert await works(database)
    assert set(told) == {None}


async def works(database: Database) -> bool:
    """Return whether a statement goes through."""
    try:
        return bool(await value_of(database, "SELECT true"))
    except DependencyDown:
        return False


async def test_reconnect_after_a_server_restart(stores: EmbeddedStores, database: Database, single: Database) -> None:
    assert await works(database)
    stores.kill_postgres()
    try:
        for each in (database, single):
            with pytest.raises(DependencyDown):
                await asyncio.wait_for(value_of(each, "SELECT 1"), 20)
            with pytest.raises(DependencyDown):
                async with asyncio.timeout(20), each.transaction() as conn:
                    await conn.execute("SELECT 1")
    finally:
        stores.start_postgres()
    for each in (database, single):
        await until(partial(works, each), what="the pool has connections again")
        assert await who(each) == SERVICE


async def test_database_missing_is_reported_at_start(tmp_path: object) -> None:
    with pytest.raises(DependencyDown):
        async with open_database(f"postgresql://u@/db?host={tmp_path}", size=1, name="nowhere"):
            pass
