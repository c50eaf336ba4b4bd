"""The migration runner on real databases, and what a server makes of a database's age."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest

from syncbeat_devtools.embedded import EmbeddedStores, running_stores
from syncbeat_server.errors import ConfigurationError, MigrationFailed, MigrationNeeded
from syncbeat_server.storage.migrate import migrate
from syncbeat_server.storage.postgres.database import Database, RowOwner, leave_user_role
from syncbeat_server.storage.postgres.driver_errors import StatementRejected
from syncbeat_server.storage.postgres.roles import require_restricted_login
from syncbeat_server.storage.schema_check import DIRECTORY, read_migrations, require_current_schema, schema_state
from syncbeat_server.sync.model import DeviceKey
from syncbeat_server.sync.policy.scope_prior import DEFAULT_PRIOR
from syncbeat_server.sync.policy.scope_signal import initial_signal, signal_outlook
from syncbeat_server.sync.store.device_views import read_device_views
from tests.support.databases import DatabaseUrls, create_database, drop_database, open_database, run_sql, urls_of

pytestmark = pytest.mark.store

APP = "syncbeat_app"
NEXT = len(read_migrations()) + 1
FIRST_RELEASE = 6
NEXT_FILE = f"{NEXT:04}_next.sql"
_names = (f"empty_{number}" for number in itertools.count(1))


@pytest.fixture
async def empty(stores: EmbeddedStores) -> AsyncIterator[DatabaseUrls]:
    """A database that was never migrated."""
    urls = await create_database(stores, next(_names))
    yield urls
    await drop_database(stores, urls.name)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A copy of the shipped migrations, to be changed."""
    return Path(shutil.copytree(DIRECTORY, tmp_path / "migrations"))


def shipped() -> list[str]:
    return [migration.name for migration in read_migrations()]


async def applied(urls: DatabaseUrls) -> list[str]:
    conn = await asyncpg.connect(urls.owner_url)
    try:
        return [row["name"] for row in await conn.fetch("SELECT name FROM schema_migrations ORDER BY version")]
    finally:
        await conn.close()


async def look(urls: DatabaseUrls, directory: Path | None = None) -> None:
    """Check the schema as a server does when it starts."""
    async with open_database(urls.app_url, size=1, name="test") as database, database.connection() as conn:
        await require_current_schema(conn, directory)


async def test_migrate_by_eight_runners_applies_each_file_once(empty: DatabaseUrls) -> None:
    answers = await asyncio.gather(*(migrate(empty.owner_url, app_login=APP) for _ in range(8)))
    assert max(answers, key=len) == shipped()
    assert sum(map(len, answers)) == len(shipped())
    assert await applied(empty) == shipped()
    assert await migrate(empty.owner_url, app_login=APP) == []
    await look(empty)


async def test_migrate_carries_over_rows_of_the_first_release(empty: DatabaseUrls, files: Path) -> None:
    newer = shipped()[FIRST_RELEASE:]
    for name in newer:
        (files / name).unlink()
    await migrate(empty.owner_url, app_login=APP, directory=files)
    await run_sql(
        empty.admin_url,
        """INSERT INTO scopes (app_id, scope, head, changed_at, created_at, change_rate)
           VALUES ('default', 'lively', 9, now(), now() - interval '90 days', 0.01)""",
        """INSERT INTO devices (app_id, user_id, device_id, platform, token_state, registered_at, updated_at)
           VALUES ('default', 'ann', 'phone', 'IOS', 'NONE', now(), now())""",
        """INSERT INTO scope_members (app_id, scope, user_id, role, added_at)
           VALUES ('default', 'lively', 'ann', 'WRITER', now())""",
    )
    assert await migrate(empty.owner_url, app_login=APP) == newer
    async with open_database(empty.app_url, size=1, name="test") as database, database.connection() as conn:
        (view,) = await read_device_views(conn, [DeviceKey("default", "ann", "phone")])
    assert view is not None
    assert not view.reach.usable
    state = view.scopes["lively"]
    # How often it changed is not known any more; but it is no scope that was silent for ninety days.
    changed_at = state.signal.windows.at
    rate = signal_outlook(state.signal, DEFAULT_PRIOR, changed_at).rate
    unknown = signal_outlook(initial_signal(changed_at), DEFAULT_PRIOR, changed_at).rate
    assert state.head == 9
    assert rate == pytest.approx(unknown)


async def test_migrate_of_several_databases_creates_roles_concurrently() -> None:
    with running_stores() as stores:
        admin_url = stores.admin_url.replace("@/syncbeat?", "@/postgres?")
        await run_sql(admin_url, "DROP DATABASE syncbeat", "DROP ROLE syncbeat_service, syncbeat_user")
        names = [f"tenant_{number}" for number in range(6)]
        await run_sql(admin_url, *(f"CREATE DATABASE {name} OWNER syncbeat_owner" for name in names))
        databases = [urls_of(stores, name) for name in names]
        answers = await asyncio.gather(
            *(migrate(urls.owner_url, app_login=APP) for urls in databases for _ in range(2))
        )
        assert sum(map(len, answers)) == len(databases) * len(shipped())
        for urls in databases:
            await look(urls)


async def test_migrate_refuses_a_changed_file(empty: DatabaseUrls, files: Path) -> None:
    await migrate(empty.owner_url, app_login=APP, directory=files)
    changed = files / shipped()[1]
    changed.write_text(changed.read_text() + "-- harmless\n")
    with pytest.raises(MigrationFailed, match=rf"{changed.name}: was changed after it was applied"):
        await migrate(empty.owner_url, app_login=APP, directory=files)
    with pytest.raises(MigrationNeeded, match=changed.name):
        await look(empty, files)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        (f"{NEXT + 1:04}_gap.sql", f"{NEXT + 1:04}_gap.sql: want {NEXT:04}"),
        ("0002_a_twin.sql", "0002_directory.sql: want 0003"),
        ("5_short.sql", "5_short.sql: want NNNN_name.sql"),
        (f"{NEXT:04}-dash.sql", f"{NEXT:04}-dash.sql: want NNNN_name.sql"),
    ],
)
def test_migrate_refuses_gaps_duplicates_and_odd_names(files: Path, name: str, why: str) -> None:
    (files / name).write_text("SELECT 1;")
    with pytest.raises(MigrationFailed, match=why):
        read_migrations(files)


async def test_migrate_failure_rolls_back_and_names_its_line(empty: DatabaseUrls, files: Path) -> None:
    broken = files / f"{NEXT:04}_broken.sql"
    broken.write_text("CREATE TABLE half_made (id int);\n\nSELECT no_such_column;\n")
    with pytest.raises(MigrationFailed, match=rf"{NEXT:04}_broken.sql: line 3: SQLSTATE 42703"):
        await migrate(empty.owner_url, app_login=APP, directory=files)
    assert await applied(empty) == shipped()
    broken.write_text("CREATE TABLE half_made (id int);\nCOMMIT;\n")
    with pytest.raises(MigrationFailed, match="ends its transaction"):
        await migrate(empty.owner_url, app_login=APP, directory=files)
    assert await applied(empty) == shipped()


async def test_schema_older_is_refused_with_the_command(empty: DatabaseUrls, files: Path) -> None:
    with pytest.raises(MigrationNeeded, match="run 'syncbeat-server migrate'"):
        await look(empty)
    await migrate(empty.owner_url, app_login=APP)
    (files / NEXT_FILE).write_text("SELECT 1;")
    with pytest.raises(MigrationNeeded, match=rf"lacks {NEXT_FILE}\): run 'syncbeat-server migrate'"):
        await look(empty, files)
    assert await migrate(empty.owner_url, app_login=APP, directory=files) == [NEXT_FILE]
    await look(empty, files)


async def test_schema_newer_is_refused_where_breaking(empty: DatabaseUrls, files: Path) -> None:
    (files / NEXT_FILE).write_text("SELECT 1;")
    await migrate(empty.owner_url, app_login=APP, directory=files)
    await look(empty)
    assert await migrate(empty.owner_url, app_login=APP) == []
    breaking = f"{NEXT + 1:04}_breaking_names.sql"
    (files / breaking).write_text("SELECT 1;")
    (files / f"{NEXT + 2:04}_next.sql").write_text("SELECT 1;")
    await migrate(empty.owner_url, app_login=APP, directory=files)
    await look(empty, files)
    with pytest.raises(MigrationNeeded, match=rf"newer than this server \(it has {breaking}\)"):
        await look(empty)
    with pytest.raises(MigrationFailed, match=rf"{breaking}: is in the database and not here"):
        await migrate(empty.owner_url, app_login=APP)


async def test_schema_state_names_applied_and_missing(database: Database, files: Path) -> None:
    (files / NEXT_FILE).write_text("SELECT 1;")
    async with database.connection() as conn:
        assert (await schema_state(conn)).current
        state = await schema_state(conn, files)
    assert (list(state.applied), state.missing, state.unknown) == (shipped(), (NEXT_FILE,), ())


async def test_migrate_refuses_wrong_logins_with_the_fix(empty: DatabaseUrls) -> None:
    with pytest.raises(MigrationFailed, match="may not create tables: migrate as the database's owner"):
        await migrate(empty.app_url, app_login=APP)
    with pytest.raises(MigrationFailed, match="there is no login nobody_here"):
        await migrate(empty.owner_url, app_login="nobody_here")
    for url in (empty.owner_url.replace("syncbeat_owner", "nobody_here"), empty.owner_url.replace("@/empty", "@/no")):
        with pytest.raises(MigrationFailed, match="refuses this login, or does not exist"):
            await migrate(url, app_login=APP)


async def test_row_level_security_binds_the_service_login(database: Database, database_urls: DatabaseUrls) -> None:
    async with database.connection() as conn:
        await require_restricted_login(conn)
        role = await conn.fetchrow("SELECT * FROM pg_roles WHERE rolname = current_user")
        unforced = await conn.fetch(
            """SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace
               AND relname NOT IN ('schema_migrations', 'test_clock')
               AND NOT (relrowsecurity AND relforcerowsecurity)"""
        )
    assert role is not None
    assert not any(role[name] for name in ("rolsuper", "rolbypassrls", "rolcreaterole", "rolcreatedb"))
    assert unforced == []
    for url, login in ((database_urls.owner_url, "syncbeat_owner"), (database_urls.admin_url, "postgres")):
        async with open_database(url, size=1, name="test") as other, other.connection() as conn:
            with pytest.raises(ConfigurationError, match=f"SYNCBEAT_DATABASE_URL: the login {login} is above"):
                await require_restricted_login(conn)


async def test_row_level_security_limits_a_user_transaction_to_its_rows(database: Database) -> None:
    insert = """INSERT INTO devices (app_id, user_id, device_id, platform, token_state, registered_at, updated_at)
                VALUES ('default', $1, 'phone', 'IOS', 'NONE', syncbeat_now(), syncbeat_now())"""
    async with database.transaction() as conn:
        for user in ("ada", "bob"):
            await conn.execute(insert, user)
    async with database.transaction(RowOwner("default", "ada")) as conn:
        assert [row["user_id"] for row in await conn.fetch("SELECT user_id FROM devices")] == ["ada"]
        await leave_user_role(conn)
        assert await conn.fetchval("SELECT count(*) FROM devices") == 2
    with pytest.raises(StatementRejected) as refused:
        async with database.transaction(RowOwner("default", "ada")) as conn:
            await conn.execute(insert, "carl")
    assert refused.value.sqlstate == "42501"
    with pytest.raises(StatementRejected):
        async with database.transaction(RowOwner("default", "ada")) as conn:
            await conn.execute("SELECT count(*) FROM notifications")


async def test_migrate_refuses_a_transaction_pooler(empty: DatabaseUrls) -> None:
    async with transaction_pooler(empty.owner_url) as url:
        assert await run_through(url, "SELECT 42") == 42
        with pytest.raises(MigrationFailed, match="SYNCBEAT_DATABASE_SESSION_URL to a direct connection"):
            await migrate(url, app_login=APP)
    with pytest.raises(MigrationNeeded):
        await look(empty)


async def run_through(url: str, query: str) -> object:
    conn = await asyncpg.connect(url, statement_cache_size=0)
    try:
        return await conn.fetchval(query)
    finally:
        await conn.close()


@asynccontextmanager
async def transaction_pooler(url: str) -> AsyncIterator[str]:
    """The address of a pooler with one server connection, lent to a client for a transaction at a time.

    It knows of PostgreSQL's protocol (documentation, 54.7 Message Formats) what that takes: a message is a letter,
    a length and a body; ReadyForQuery (Z) says whether the transaction is over, Terminate (X) that the client is.
    """
    reader, writer = await asyncio.open_unix_connection(url.partition("host=")[2].replace("&port=", "/.s.PGSQL."))
    pooler = _Pooler(reader, writer)
    with tempfile.TemporaryDirectory(prefix="pooler-") as folder:
        async with await asyncio.start_unix_server(pooler.serve, f"{folder}/.s.PGSQL.6432"):
            answers = asyncio.create_task(pooler.pass_answers())
            yield f"{url.partition('?')[0]}?host={folder}&port=6432"
            writer.close()
            with pytest.raises(asyncio.IncompleteReadError):
                await answers


class _Pooler:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.turn = asyncio.Lock()
        self.client: asyncio.StreamWriter | None = None
        self.greeting = b""
        self.greeted = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        startup = await _sized(reader)
        if self.greeted:
            writer.write(self.greeting)
        else:
            await self.lend(writer)
            self.writer.write(startup)
        while (kind := await reader.readexactly(1)) != b"X":
            sent = kind + await _sized(reader)
            if self.client is not writer:
                await self.lend(writer)
            self.writer.write(sent)
        writer.close()

    async def lend(self, client: asyncio.StreamWriter) -> None:
        await self.turn.acquire()
        self.client = client

    async def pass_answers(self) -> None:
        while True:
            kind = await self.reader.readexactly(1)
            answer = kind + await _sized(self.reader)
            assert self.client is not None
            self.client.write(answer)
            if not self.greeted:
                self.greeting += answer
                self.greeted = kind == b"Z"
            if kind == b"Z" and answer.endswith(b"I"):
                self.client = None
                self.turn.release()


async def _sized(reader: asyncio.StreamReader) -> bytes:
    size = await reader.readexactly(4)
    return size + await reader.readexactly(int.from_bytes(size, "big") - 4)
