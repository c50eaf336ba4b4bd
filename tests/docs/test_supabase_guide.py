"""The SQL of docs/guides/supabase.md, run by an administrator who is no superuser, makes a database that serves."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import pytest

from syncbeat_devtools.demo.processes import Identity
from syncbeat_devtools.embedded import EmbeddedStores, running_stores
from syncbeat_server.auth.tokens.verify import mint
from syncbeat_server.storage.migrate import migrate
from syncbeat_server.storage.postgres.database import RowOwner
from syncbeat_server.storage.postgres.roles import require_restricted_login
from syncbeat_server.storage.schema_check import read_migrations, require_current_schema
from tests.docs.commands import serving
from tests.docs.pages import ROOT, blocks_of, run_program
from tests.support.databases import open_database, run_sql

pytestmark = pytest.mark.process

GUIDE = ROOT / "docs/guides/supabase.md"


@pytest.fixture(scope="module")
def cluster() -> Iterator[EmbeddedStores]:
    """A cluster of its own, since roles are the whole cluster's."""
    with running_stores() as running:
        yield running


async def make_project(cluster: EmbeddedStores, administrator_url: str, sql: str) -> None:
    """Make a database as Supabase has it: none of our roles, and an administrator who is no superuser runs the SQL."""
    await run_sql(
        cluster.admin_url.replace("@/syncbeat?", "@/postgres?"),
        *(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)" for name in ("syncbeat", "project")),
        *(f"DROP ROLE IF EXISTS {name}" for name in ("syncbeat_owner", "syncbeat_app", "administrator", "anon")),
        *(f"DROP ROLE IF EXISTS {name}" for name in ("syncbeat_service", "syncbeat_user")),
        "CREATE ROLE administrator LOGIN CREATEROLE CREATEDB BYPASSRLS",
        "CREATE ROLE anon NOLOGIN",
        "CREATE DATABASE project OWNER administrator",
    )
    conn = await asyncpg.connect(administrator_url)
    try:
        await conn.execute(sql)
    finally:
        await conn.close()


@pytest.fixture
def urls(cluster: EmbeddedStores) -> dict[str, str]:
    """The addresses of the logins of such a database."""
    logins = ("syncbeat_owner", "syncbeat_app", "administrator")
    found = {login: cluster.admin_url.replace("postgres@/syncbeat?", f"{login}@/project?") for login in logins}
    (sql,) = [block.text for block in blocks_of(GUIDE) if block.language == "sql"]
    asyncio.run(make_project(cluster, found["administrator"], sql))
    return found


async def test_sql_of_the_supabase_guide_keeps_tables_from_the_data_api(urls: dict[str, str]) -> None:
    shipped = [migration.name for migration in read_migrations()]
    assert await migrate(urls["syncbeat_owner"], app_login="syncbeat_app") == shipped
    async with open_database(urls["syncbeat_app"], size=2, name="test") as database:
        async with database.transaction() as conn:
            await require_current_schema(conn)
            await require_restricted_login(conn)
        async with database.transaction(RowOwner("default", "alice")) as conn:
            assert await conn.fetchval("SELECT count(*) FROM devices") == 0
    admin = await asyncpg.connect(urls["administrator"])
    try:
        places = await admin.fetch(
            "SELECT DISTINCT schemaname FROM pg_tables WHERE tablename IN ('devices', 'changes')"
        )
        assert [row["schemaname"] for row in places] == ["syncbeat"]
        assert not await admin.fetchval("SELECT has_schema_privilege('anon', 'syncbeat', 'USAGE')")
    finally:
        await admin.close()


def test_quickstart_runs_on_the_database_of_the_supabase_guide(
    cluster: EmbeddedStores, urls: dict[str, str], tmp_path: Path
) -> None:
    asyncio.run(migrate(urls["syncbeat_owner"], app_login="syncbeat_app"))
    identity = Identity.new()
    settings = {
        **identity.settings(),
        "SYNCBEAT_LISTEN": "127.0.0.1:0",
        "SYNCBEAT_DATABASE_URL": urls["syncbeat_app"],
        "SYNCBEAT_DATABASE_SESSION_URL": urls["syncbeat_app"],
        "SYNCBEAT_REDIS_URL": cluster.redis_url,
    }
    (program,) = [block for block in blocks_of(ROOT / "docs/quickstart.md") if block.language == "python"]
    with serving(["serve"], "serving on ", settings) as server:
        reader = {
            "ADDRESS": server.after("serving on "),
            "USER_TOKEN": mint(identity.key, "alice", datetime.now(UTC), timedelta(hours=1)),
            "SERVICE_TOKEN": identity.service_token,
        }
        done = run_program(program.text, {**os.environ, **reader}, tmp_path)
    assert (done.returncode, done.stdout) == (0, 'chat:7 topic {"text": "hi"}\n'), done.stderr
