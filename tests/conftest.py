"""Real PostgreSQL and Valkey, started once a test process; a migrated database of its own for each test that asks."""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import socket
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import asyncpg
import hypothesis
import pytest
import redis

from syncbeat_devtools.embedded import EmbeddedStores, running_stores
from syncbeat_server.storage.migrate import migrate
from syncbeat_server.storage.postgres import database as database_module
from syncbeat_server.storage.postgres.database import Database, open_database
from syncbeat_server.storage.redis import bus as storage_redis
from tests.fakes import FakeClock
from tests.pooler import pooled

_TEMPLATE = "syncbeat_template"
_REDIS_DATABASES = 127
_TEST_APP_LOGIN = "syncbeat_app"

# The clock of the template: what the test's clock says, or the real time as long as no test sets it.
_TEST_CLOCK = """
CREATE TABLE test_clock (at timestamptz);
INSERT INTO test_clock VALUES (NULL);
GRANT SELECT ON test_clock TO PUBLIC;
CREATE OR REPLACE FUNCTION syncbeat_now() RETURNS timestamptz LANGUAGE sql STABLE PARALLEL SAFE
    AS $$ SELECT coalesce((SELECT at FROM test_clock), now()) $$;
"""

# A JWT or half of one, a refresh token, an authorization value, a private key, and what the tests call their tokens.
_SECRET = re.compile(r"eyJ[\w-]{8,}|sbr_[\w-]{8,}|[Bb]earer [\w.-]{8,}|PRIVATE KEY|a-token-of-|0123456789abcdef0123")

# The same examples each time, and none is wrong because the machine paused while it was drawn or checked. `make prove`
# tries many more, others each time.
_STEADY = hypothesis.settings(
    deadline=None, database=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.register_profile("steady", _STEADY)
hypothesis.settings.register_profile("roaming", _STEADY, derandomize=False, max_examples=2_000)
hypothesis.settings.load_profile("steady")

_numbers = itertools.count(1)


@dataclass(frozen=True)
class DatabaseUrls:
    """One database under its three logins: the service's, the owner's, the superuser's."""

    name: str
    app_url: str
    owner_url: str
    admin_url: str


def urls_of(stores: EmbeddedStores, name: str) -> DatabaseUrls:
    """The addresses of another database of the same cluster."""

    def renamed(url: str) -> str:
        return url.replace("@/syncbeat?", f"@/{name}?")

    return DatabaseUrls(name, renamed(stores.app_url), renamed(stores.owner_url), renamed(stores.admin_url))


async def run_sql(url: str, *statements: str) -> None:
    """Run each statement by itself, outside a transaction."""
    conn = await asyncpg.connect(url)
    try:
        for statement in statements:
            await conn.execute(statement)
    finally:
        await conn.close()


async def create_database(stores: EmbeddedStores, name: str, template: str = "template1") -> DatabaseUrls:
    """Make a database as deploy/postgres/10-logins.sh would."""
    await run_sql(
        stores.admin_url,
        f"CREATE DATABASE {name} OWNER syncbeat_owner TEMPLATE {template} STRATEGY FILE_COPY",
        f"REVOKE CONNECT, TEMPORARY ON DATABASE {name} FROM PUBLIC",
        f"GRANT CONNECT ON DATABASE {name} TO {_TEST_APP_LOGIN}",
    )
    return urls_of(stores, name)


async def drop_database(stores: EmbeddedStores, name: str) -> None:
    """Drop it, whoever is connected."""
    await run_sql(stores.admin_url, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


class _SecretsInLogs(logging.Handler):
    """Looks for tokens and keys in whatever is logged by this process."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        trace = "".join(traceback.format_exception(*record.exc_info)) if record.exc_info else ""
        text = f"{record.getMessage()} {record.__dict__} {trace}"
        if _SECRET.search(text):
            self.found.append(f"{record.name}:{record.lineno}: {record.msg}")


@pytest.fixture(autouse=True)
def no_secret_is_logged() -> Iterator[None]:
    """The canary of the whole suite: a token in any log line fails the test that wrote it."""
    handler = _SecretsInLogs()
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


@pytest.fixture(autouse=True)
def patient_with_transactions(monkeypatch: pytest.MonkeyPatch) -> None:
    """A transaction that a test holds open stays so for as long as a busy machine needs to come to its end."""
    patient = database_module._BEGIN.replace("session_timeout = 6000", "session_timeout = 60000")
    assert patient != database_module._BEGIN
    monkeypatch.setattr(database_module, "_BEGIN", patient)
    monkeypatch.setattr(database_module, "_BOUND", database_module._BOUND.replace("10000", "60000"))


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
        await migrate(urls.owner_url, app_login=_TEST_APP_LOGIN)
        await run_sql(urls.owner_url, _TEST_CLOCK)

    asyncio.run(make())
    return _TEMPLATE


@pytest.fixture
async def database_urls(stores: EmbeddedStores, template: str) -> AsyncIterator[DatabaseUrls]:
    """A database for this test alone, migrated and empty."""
    urls = await create_database(stores, f"test_{next(_numbers)}", template)
    yield urls
    await drop_database(stores, urls.name)


class WatchedDatabase(Database):
    """The service's pool, which knows who works with it."""

    def __init__(self, opened: Database) -> None:
        super().__init__(opened._pool)
        self._users = Counter[asyncio.Task[Any] | None]()
        self._left = asyncio.Event()

    @asynccontextmanager
    async def _acquired(self) -> AsyncIterator[asyncpg.pool.PoolConnectionProxy]:
        task = asyncio.current_task()
        self._users[task] += 1
        try:
            async with super()._acquired() as conn:
                yield conn
        finally:
            self._users[task] -= 1
            if not self._users[task]:
                del self._users[task]
            self._left.set()

    async def rest(self) -> bool:
        """Return when no task but this one waits for it or is in a transaction; whether that took any waiting."""
        waited = False
        while self._users.keys() - {asyncio.current_task()}:
            waited = True
            self._left.clear()
            await self._left.wait()
        return waited


@pytest.fixture
async def database(database_urls: DatabaseUrls) -> AsyncIterator[WatchedDatabase]:
    """The service's pool on this test's database, as the service's login."""
    async with open_database(database_urls.app_url, size=4, name="test") as opened:
        yield WatchedDatabase(opened)


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A TCP port that refuses who connects: it is taken, so that nobody else gets it, and nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield int(taken.getsockname()[1])


@pytest.fixture
def redis_url(stores: EmbeddedStores, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty database of Valkey for this test alone. Channels are everybody's, as in production.

    That it is gone is told by its socket: a pause of this machine is not to be taken for that.
    """
    monkeypatch.setattr(storage_redis, "_TIMEOUT_S", 20.0)
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
