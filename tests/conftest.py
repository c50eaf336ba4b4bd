"""Real PostgreSQL and Valkey, started once a test process; a migrated database of its own for each test that asks."""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from pathlib import Path

import asyncpg
import hypothesis
import pytest
import pytest_asyncio
import redis

from syncbeat_devtools.embedded import EmbeddedStores, running_stores
from syncbeat_server.app.process_rules import ProcessRules
from syncbeat_server.storage.migrate import migrate
from tests.support import ports
from tests.support.databases import (
    TEST_APP_LOGIN,
    DatabaseUrls,
    WatchedDatabase,
    create_database,
    drop_database,
    open_database,
    run_sql,
)
from tests.support.fake_clock import FakeClock
from tests.support.pgbouncer import pooled
from tests.support.process_rules import PATIENT
from tests.support.rpc_server import Server, running_server
from tests.support.secret_log_scan import SecretLogScan

_TEMPLATE = "syncbeat_template"
_REDIS_DATABASES = 127

# The clock of the template: what the test's clock says, or the real time as long as no test sets it.
_TEST_CLOCK = """
CREATE TABLE test_clock (at timestamptz);
INSERT INTO test_clock VALUES (NULL);
GRANT SELECT ON test_clock TO PUBLIC;
CREATE OR REPLACE FUNCTION syncbeat_now() RETURNS timestamptz LANGUAGE sql STABLE PARALLEL SAFE
    AS $$ SELECT coalesce((SELECT at FROM test_clock), now()) $$;
"""

# The same examples each time, and none is wrong because the machine paused while it was drawn or checked. `make prove`
# tries many more, others each time.
_STEADY = hypothesis.settings(
    deadline=None, database=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.register_profile("steady", _STEADY)
hypothesis.settings.register_profile("roaming", _STEADY, derandomize=False, max_examples=2_000)
hypothesis.settings.load_profile("steady")

_TIERS = ("unit", "http", "store", "rpc", "process", "prove")
_WITHOUT_STORES = ("unit", "http")

_numbers = itertools.count(1)


@pytest.fixture(autouse=True)
def no_secret_is_logged() -> Iterator[None]:
    """The canary of the whole suite: a token in any log line fails the test that wrote it."""
    handler = SecretLogScan()
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
    assert not handler.found


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of a run.

    With a pooler the service's login goes through it: `make prove` runs the tests of storage and RPCs that way too.
    """
    parser.addoption("--jose-vectors", type=Path, help="run the JOSE test vectors of this folder and nothing else")
    parser.addoption("--pgbouncer", type=Path, help="the program of a PgBouncer to put before PostgreSQL")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse a test that is not of exactly one tier, or that uses the stores and is of a tier without them."""
    for item in items:
        of = [mark.name for mark in item.iter_markers() if mark.name in _TIERS]
        if len(of) != 1:
            raise pytest.UsageError(
                f"{item.nodeid} has the tiers {of}: mark its module with one of {', '.join(_TIERS)}"
            )
        if of[0] in _WITHOUT_STORES and "stores" in getattr(item, "fixturenames", ()):
            raise pytest.UsageError(f"{item.nodeid} uses the stores: its tier is not {of[0]}")


@pytest.fixture(scope="session")
def stores(pytestconfig: pytest.Config) -> Iterator[EmbeddedStores]:
    """PostgreSQL and Valkey for all tests of this process. A test that stops them starts them again."""
    pgbouncer: Path | None = pytestconfig.getoption("--pgbouncer")
    with running_stores() as running:
        if pgbouncer is None:
            yield running
            return
        with pooled(running, pgbouncer) as behind:
            yield behind


@pytest.fixture(scope="session")
def template(stores: EmbeddedStores) -> str:
    """The name of a migrated database that takes its time from a table; nobody connects to it again."""

    async def make() -> None:
        urls = await create_database(stores, _TEMPLATE)
        await migrate(urls.owner_url, app_login=TEST_APP_LOGIN)
        await run_sql(urls.owner_url, _TEST_CLOCK)

    asyncio.run(make())
    return _TEMPLATE


@pytest.fixture
async def database_urls(stores: EmbeddedStores, template: str) -> AsyncIterator[DatabaseUrls]:
    """A database for this test alone, migrated and empty."""
    urls = await create_database(stores, f"test_{next(_numbers)}", template)
    yield urls
    await drop_database(stores, urls.name)


@pytest.fixture
async def database(database_urls: DatabaseUrls) -> AsyncIterator[WatchedDatabase]:
    """The service's pool on this test's database, as the service's login."""
    async with open_database(database_urls.app_url, size=4, name="test") as opened:
        yield WatchedDatabase(opened)


@pytest.fixture
def free_port() -> int:
    """A TCP port that nobody has."""
    return ports.free_port()


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A TCP port that refuses who connects: it is taken, so that nobody else gets it, and nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield int(taken.getsockname()[1])


@pytest.fixture
def redis_url(stores: EmbeddedStores) -> str:
    """An empty database of Valkey for this test alone. Channels are everybody's, as in production."""
    url = f"{stores.redis_url}?db={next(_numbers) % _REDIS_DATABASES + 1}"
    with redis.Redis.from_url(url) as client:
        client.flushdb()
    return url


@pytest.fixture
async def clock(request: pytest.FixtureRequest) -> AsyncIterator[FakeClock]:
    """A clock moved by hand. The database of a test that has one goes by it too, and it waits for that."""
    if "database_urls" not in request.fixturenames:
        yield FakeClock()
        return
    urls: DatabaseUrls = request.getfixturevalue("database_urls")
    watched: WatchedDatabase | None = None
    if "database" in request.fixturenames:
        watched = request.getfixturevalue("database")
    conn = await asyncpg.connect(urls.owner_url)

    async def move(moment: datetime) -> None:
        await conn.execute("UPDATE test_clock SET at = $1", moment)

    try:
        moved = FakeClock(on_move=move, rest=None if watched is None else watched.rest)
        await move(moved.now())
        yield moved
    finally:
        await conn.close()


@pytest.fixture
def rules() -> ProcessRules:
    """The times of this test's servers; a module, or the parameter `rules` of a test, gives others."""
    return PATIENT


@pytest.fixture
async def server(database_urls: DatabaseUrls, redis_url: str, rules: ProcessRules) -> AsyncIterator[Server]:
    """A server of this test's own."""
    async with running_server(database_urls, redis_url, rules=rules) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def module_server(stores: EmbeddedStores, template: str) -> AsyncIterator[Server]:
    """A server for all tests of a module, which then run on the module's loop."""
    urls = await create_database(stores, f"rpc_{next(_numbers)}", template)
    async with running_server(urls, stores.redis_url) as running:
        yield running
    await drop_database(stores, urls.name)
