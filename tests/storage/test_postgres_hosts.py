"""Several PostgreSQL hosts in one address: one that says nothing keeps nobody from the others."""

from __future__ import annotations

import asyncio
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from syncbeat_server.errors import DependencyDown
from syncbeat_server.storage.migrate import migrate
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.storage.postgres.hosts import parse_hosts
from syncbeat_server.storage.postgres.pg_notify import listen
from tests.support.databases import DatabaseUrls, open_database
from tests.support.fake_clock import FakeClock, wait_until

pytestmark = pytest.mark.store


class DeafHost:
    """A host that takes connections and never says a word, as one whose PostgreSQL is stopped."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.bind(f"{folder}/.s.PGSQL.5432")
        self.socket.listen()
        self.socket.setblocking(False)

    def before(self, url: str) -> str:
        """The address with this host first."""
        return url.replace("host=", f"host={self.folder},")

    def callers(self) -> int:
        """Return how many have connected since this was asked last."""
        count = 0
        while True:
            try:
                self.socket.accept()[0].close()
            except BlockingIOError:
                return count
            count += 1


@pytest.fixture
def deaf() -> Iterator[DeafHost]:
    with tempfile.TemporaryDirectory(prefix="deaf-") as folder:
        host = DeafHost(folder)
        yield host
        host.socket.close()


async def answer(database: Database) -> object:
    async with database.connection() as conn:
        return await conn.fetchval("SELECT 42")


async def test_postgres_host_silent_does_not_delay_the_next(deaf: DeafHost, database_urls: DatabaseUrls) -> None:
    url = deaf.before(database_urls.app_url)
    async with open_database(url, size=4, name="two hosts") as database:
        assert deaf.callers() == 1
        await database._pool.driver.expire_connections()
        assert await asyncio.gather(*(answer(database) for _ in range(4))) == [42] * 4
        # Whoever answered is asked first from then on.
        assert deaf.callers() == 0


async def test_postgres_host_silent_does_not_delay_migrations(deaf: DeafHost, database_urls: DatabaseUrls) -> None:
    assert await migrate(deaf.before(database_urls.owner_url), app_login="syncbeat_app") == []
    assert deaf.callers() > 0


async def test_postgres_host_silent_does_not_delay_listeners(deaf: DeafHost, database_urls: DatabaseUrls) -> None:
    heard = asyncio.Event()
    listening = asyncio.ensure_future(listen(deaf.before(database_urls.admin_url), heard.set, FakeClock()))
    try:
        await wait_until(heard.is_set, what="its own notice")
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)


async def test_postgres_host_read_only_is_skipped_and_named_when_all_are(database_urls: DatabaseUrls) -> None:
    folder = database_urls.app_url.partition("host=")[2].partition("&")[0]
    twice = database_urls.app_url.replace(folder, f"{folder},{folder}")
    async with open_database(f"{twice}&target_session_attrs=read-write", size=1, name="twice") as database:
        assert await answer(database) == 42
    with pytest.raises(DependencyDown, match="check SYNCBEAT_DATABASE_URL"):
        async with open_database(f"{twice}&target_session_attrs=standby", size=1, name="no standby"):
            pass


async def test_postgres_hosts_all_away_are_an_outage_within_one_timeout(deaf: DeafHost, tmp_path: Path) -> None:
    with pytest.raises(DependencyDown, match="the database does not answer"):
        async with open_database(f"postgresql://me@/it?host={deaf.folder},{tmp_path}", size=1, name="none"):
            pass


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("postgresql://me@one:5433,two/it", [("one", 5433), ("two", 5432)]),
        ("postgresql://me:a%2Cb@one,two:1/it?target_session_attrs=read-write", [("one", 5432), ("two", 1)]),
        ("postgresql://me@[::1]:5433,[::2]/it", [("::1", 5433), ("::2", 5432)]),
        ("postgresql://me@%2Frun%2Fa,%2Frun%2Fb:2/it", [("/run/a", 5432), ("/run/b", 2)]),
        ("postgresql://me@/it?host=/run/a,/run/b&port=1,2", [("/run/a", 1), ("/run/b", 2)]),
        ("postgresql://me@/it?host=one,two&port=7", [("one", 7), ("two", 7)]),
        ("postgresql://me@one,two/it?target_session_attrs=prefer-standby", []),
        ("postgresql://me@one/it", []),
        ("postgresql://me@/it?host=/run/a", []),
        ("postgresql:///it", []),
        ("postgresql://me@one,,two/it", []),
        ("postgresql://me@/it?host=one,two&port=1,2,3", []),
    ],
)
def test_postgres_hosts_are_parsed_from_an_address(url: str, found: list[tuple[str, int]]) -> None:
    assert parse_hosts(url) == found
