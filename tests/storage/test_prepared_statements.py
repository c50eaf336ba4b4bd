"""Prepared statements are kept where a connection leads to the server itself, and nowhere else unless told so."""

from __future__ import annotations

import asyncio
import contextlib
import re
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote

import pytest

from syncbeat_server.storage.postgres.database import Database, RowOwner
from syncbeat_server.storage.postgres.driver_errors import Conflict
from tests.support.databases import DatabaseUrls, open_database, run_sql
from tests.support.seed import value_of

pytestmark = pytest.mark.store

KEPT = "SELECT count(*) FROM pg_prepared_statements WHERE starts_with(statement, $1)"
QUESTION = "SELECT $1::int + 1"


async def kept(url: str, *, prepare: bool | None) -> int:
    """Count the statements that the server keeps for a question that was asked three times on one connection."""
    async with open_database(url, size=1, name="prepared", prepare=prepare) as database:
        for number in range(3):
            assert await value_of(database, QUESTION, number) == number + 1
        return int(await value_of(database, KEPT, QUESTION))


@asynccontextmanager
async def pooler(url: str, folder: Path) -> AsyncIterator[str]:
    """A door to the server that tells a process number of its own, as those do that share server processes."""
    found = re.search(r"host=([^&]+)&port=(\d+)", url)
    assert found is not None
    there = f"{found[1]}/.s.PGSQL.{found[2]}"
    tasks: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while octets := await reader.read(1 << 16):
                writer.write(octets)
                await writer.drain()
        writer.close()

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Messages of the server: a type, a length that counts itself, a body (PostgreSQL's documentation, 53.2).
        kind = b""
        while kind != b"Z":
            kind, length = struct.unpack("!cI", await reader.readexactly(5))
            body = await reader.readexactly(length - 4)
            if kind == b"K":
                process, secret = struct.unpack_from("!I", body)[0], body[4:]
                body = struct.pack("!I", process ^ 1) + secret
            writer.write(struct.pack("!cI", kind, length) + body)
        await pump(reader, writer)

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        above, below = await asyncio.open_unix_connection(there)
        for work in (pump(reader, below), greet(above, writer)):
            tasks.add(asyncio.create_task(work))

    server = await asyncio.start_unix_server(accept, folder / f".s.PGSQL.{found[2]}")
    try:
        yield url.replace(f"host={found[1]}", f"host={quote(str(folder), safe='/')}")
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_prepared_statements_are_kept_on_a_direct_connection(database_urls: DatabaseUrls) -> None:
    assert await kept(database_urls.app_url, prepare=None) == 1
    assert await kept(database_urls.app_url, prepare=False) == 0


async def test_prepared_statements_behind_a_pooler_are_kept_only_when_told_so(
    database_urls: DatabaseUrls, tmp_path: Path
) -> None:
    async with pooler(database_urls.app_url, tmp_path) as url:
        assert await kept(url, prepare=None) == 0
        assert await kept(url, prepare=True) == 1


async def test_prepared_statement_whose_result_a_migration_changes_is_a_conflict_once(
    database_urls: DatabaseUrls,
) -> None:
    probe = "CREATE TABLE probe (a int); INSERT INTO probe VALUES (1); GRANT SELECT ON probe TO PUBLIC"
    await run_sql(database_urls.owner_url, probe)
    async with open_database(database_urls.app_url, size=1, name="prepared") as database:

        async def columns() -> int:
            async with database.transaction() as conn:
                row = await conn.fetchrow("SELECT p.* FROM probe p WHERE a = $1", 1)
                assert row is not None
                return len(list(row.keys()))

        assert await columns() == 1
        await run_sql(database_urls.owner_url, "ALTER TABLE probe ADD COLUMN b int")
        with pytest.raises(Conflict):
            await columns()
        assert await columns() == 2


async def test_prepared_statements_follow_the_role_of_a_transaction(database: Database) -> None:
    read = "SELECT current_user::text || $1"
    for _ in range(7):  # PostgreSQL may take one plan for all from the sixth time on
        async with database.transaction(RowOwner("default", "ann")) as conn:
            assert await conn.fetchval(read, "!") == "syncbeat_user!"
        assert await value_of(database, read, "!") == "syncbeat_app!"
