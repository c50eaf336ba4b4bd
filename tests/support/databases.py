"""Databases of the embedded PostgreSQL: made, dropped and watched by tests."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg

from syncbeat_devtools.embedded import EmbeddedStores
from syncbeat_server.storage.postgres import database as postgres
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.storage.postgres.time_limits import DatabaseTimings
from tests.support.process_rules import PATIENT

TEST_APP_LOGIN = "syncbeat_app"


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


def socket_of(url: str) -> str:
    """The path of the Unix socket that an address of the embedded PostgreSQL leads to."""
    query = parse_qs(urlsplit(url).query)
    return f"{query['host'][0]}/.s.PGSQL.{query['port'][0]}"


def url_at(url: str, address: str) -> str:
    """The address of the same database and login at another host and port."""
    parts = urlsplit(url)
    return f"postgresql://{parts.username}@{address}{parts.path}"


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
        f"GRANT CONNECT ON DATABASE {name} TO {TEST_APP_LOGIN}",
    )
    return urls_of(stores, name)


async def drop_database(stores: EmbeddedStores, name: str) -> None:
    """Drop it, whoever is connected."""
    await run_sql(stores.admin_url, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def open_database(
    url: str, *, size: int, name: str, prepare: bool | None = None, timings: DatabaseTimings = PATIENT.database
) -> AbstractAsyncContextManager[Database]:
    """Open the service's pool, whose transactions may stay open as long as a busy machine needs."""
    return postgres.open_database(url, size=size, name=name, prepare=prepare, timings=timings)


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


async def logins_of(urls: DatabaseUrls) -> list[str]:
    """Return the logins that are connected to a database, but the superuser's."""
    conn = await asyncpg.connect(urls.admin_url)
    try:
        found = await conn.fetch(
            "SELECT DISTINCT usename FROM pg_stat_activity WHERE datname = $1 AND usename <> session_user", urls.name
        )
    finally:
        await conn.close()
    return [name for (name,) in found]
