"""All that is stored of a user is exported and erased from every table of the catalog, and nothing of anybody else."""

from __future__ import annotations

import json

import asyncpg
import pytest

from syncbeat_server.auth.model import Identity, LinkedBy
from syncbeat_server.auth.store import identities
from syncbeat_server.errors import IdentityConflict
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.storage.postgres.snapshot import open_snapshot
from syncbeat_server.transfer.users.erasure import UserErasure, is_known
from syncbeat_server.transfer.users.export import export_user
from syncbeat_server.transfer.users.tables import TABLES_WITHOUT_USERS, USER_TABLES
from tests.support.app_rows import plant_app
from tests.support.databases import DatabaseUrls

pytestmark = pytest.mark.store

# Of each table that `plant_app` fills: the user 'u1' in place of what it plants there.
_NAMES_U1 = (
    "UPDATE request_records SET caller = 'user:u1' WHERE app_id = 'shop' AND request_id = 'q1'",
    "UPDATE quota_usage SET name = 'user:u1' WHERE app_id = 'shop' AND name = 'user:1'",
    "UPDATE events SET subject = 'u1' WHERE app_id = 'shop' AND event_id = 'e1'",
    'UPDATE expansions SET targets = \'[{"user_id": "u1"}, {"user_id": "u2"}]\' WHERE app_id = \'shop\'',
    (
        "INSERT INTO audit_entries (app_id, action, actor, address, subject, request_id, details) VALUES "
        "('shop', 'USER_REVOKED', 'operator:ann@host', '10.0.0.9', 'user:u1', 'r', '{}'), "
        "('shop', 'SESSION_REVOKED', 'user:u1', '10.0.0.1', 'user:u1', 'r', '{}'), "
        "('shop', 'SESSION_REVOKED', 'user:u2', '10.0.0.2', 'user:u2', 'r', '{}')"
    ),
    (
        "UPDATE devices SET registration_token = 'token-of-u1', token_digest = 'd', token_state = 'ACTIVE' "
        "WHERE app_id = 'shop' AND user_id = 'u1'"
    ),
    "UPDATE wake_budgets SET spent = '{\"user:u1\": 1}' WHERE app_id = 'shop' AND user_id = 'u2'",
)


async def plant(urls: DatabaseUrls) -> None:
    await plant_app(urls, "shop", 2)
    conn = await asyncpg.connect(urls.admin_url)
    try:
        await conn.execute("SET session_replication_role = replica")
        for statement in _NAMES_U1:
            await conn.execute(statement)
    finally:
        await conn.close()


async def export(database: Database, user_id: str, *, with_values: bool = False) -> tuple[dict[str, int], str]:
    parts: list[str] = []
    async with open_snapshot(database) as snapshot:
        counts = await export_user(snapshot, "shop", user_id, parts.append, with_values=with_values)
    return counts, "".join(parts)


async def told_nobody() -> None:
    pass


async def test_user_tables_declare_every_table_and_column_of_the_catalog(database_urls: DatabaseUrls) -> None:
    conn = await asyncpg.connect(database_urls.admin_url)
    try:
        rows = await conn.fetch(
            """SELECT c.table_name::text AS name, array_agg(c.column_name::text) AS columns
               FROM information_schema.columns c JOIN information_schema.tables t USING (table_schema, table_name)
               WHERE c.table_schema = current_schema() AND t.table_type = 'BASE TABLE' GROUP BY 1"""
        )
    finally:
        await conn.close()
    columns = {row["name"]: set(row["columns"]) for row in rows if "app_id" in row["columns"]}
    assert columns.keys() == USER_TABLES.keys() | TABLES_WITHOUT_USERS.keys()
    assert not USER_TABLES.keys() & TABLES_WITHOUT_USERS.keys()
    for name, table in USER_TABLES.items():
        assert sorted([*table.columns, *table.withheld, "app_id"]) == sorted(columns[name]), name
        assert table.shown.keys() <= set(table.columns), name
    for name, of in columns.items():
        if any(column == "user_id" or column.endswith("_user_id") for column in of):
            assert name in USER_TABLES, f"{name} has rows of users"


async def test_user_export_has_rows_of_every_table_and_no_secret_and_nobody_else(
    database: Database, database_urls: DatabaseUrls
) -> None:
    await plant(database_urls)
    counts, text = await export(database, "u1")
    assert [name for name, count in counts.items() if not count] == []
    exported = json.loads(text)
    assert (exported["format"], exported["app_id"], exported["user_id"]) == ("syncbeat-user-1", "shop", "u1")
    assert {name: len(rows) for name, rows in exported["tables"].items()} == counts
    for name, rows in exported["tables"].items():
        for row in rows:
            assert list(row.keys() & USER_TABLES[name].withheld.keys()) == []
    assert exported["tables"]["devices"][0]["registration_token"] == "token-of-u1"
    entries = exported["tables"]["audit_entries"]
    assert sorted((entry["actor"], entry["address"]) for entry in entries) == [
        ("operator", None),
        ("user:u1", "10.0.0.1"),
    ]
    assert "ann@host" not in text
    assert '"u2"' not in text
    (budget,) = (row for row in exported["tables"]["wake_budgets"] if row["user_id"] is None)
    assert budget["device_id"] is None
    nobody, _ = await export(database, "u3")
    assert not any(nobody.values())


async def test_user_export_adds_values_of_the_scopes_of_a_member(
    database: Database, database_urls: DatabaseUrls
) -> None:
    await plant(database_urls)
    _, text = await export(database, "u1", with_values=True)
    scopes = json.loads(text)["scopes"]
    assert scopes.keys() == {"s1"}
    assert scopes["s1"]["values"].keys() == {"k1", "k2"}
    assert "members" not in scopes["s1"]


async def test_user_erasure_leaves_only_what_is_declared_to_stay(
    database: Database, database_urls: DatabaseUrls
) -> None:
    await plant(database_urls)
    others = await UserErasure(database, lambda *_: None).rows_of("shop", "u2")
    checked: list[tuple[str, str]] = []
    erasure = UserErasure(database, lambda app_id, user_id: checked.append((app_id, user_id)))
    before = await erasure.rows_of("shop", "u1")
    done = await erasure.erase("shop", "u1", told_nobody)
    assert done is not None
    assert checked == [("shop", "u1")]
    assert done.kept == await erasure.rows_of("shop", "u1")
    assert [name for name in done.kept if not USER_TABLES[name].stays] == []
    may_go = {name for name, table in USER_TABLES.items() if not table.stays}
    assert may_go <= done.deleted.keys()
    assert {name: done.deleted[name] for name in may_go} == {name: before[name] for name in may_go}
    kept = await UserErasure(database, lambda *_: None).rows_of("shop", "u2")
    # Its own jobs and windows of targets that named both stay; nothing of it went.
    assert {name: count for name, count in kept.items() if count < others[name]} == {}


async def test_user_erasure_by_a_linked_subject_is_refused_and_erases_nothing(
    database: Database, database_urls: DatabaseUrls
) -> None:
    await plant(database_urls)
    async with database.transaction() as conn:
        linked = Identity("shop", "https://new.example", "uuid-of-u1")
        assert await identities.insert_identity(conn, linked, "u1", LinkedBy.LINK_TOKEN)
    checked: list[tuple[str, str]] = []
    erasure = UserErasure(database, lambda app_id, user_id: checked.append((app_id, user_id)))
    before = await erasure.rows_of("shop", "u1")
    with pytest.raises(IdentityConflict, match="'u1'"):
        await erasure.erase("shop", "uuid-of-u1", told_nobody)
    with pytest.raises(IdentityConflict, match="'u1'"):
        await is_known(database, "shop", "uuid-of-u1")
    assert await is_known(database, "shop", "u1")
    assert not await is_known(database, "other", "u1")
    assert not checked
    assert await erasure.rows_of("shop", "uuid-of-u1") == {}
    assert await erasure.rows_of("shop", "u1") == before


async def test_user_is_erased_and_told_although_the_rows_cannot_be_counted(
    database: Database, database_urls: DatabaseUrls
) -> None:
    await plant(database_urls)
    told: list[tuple[str, str]] = []
    announced: list[list[tuple[str, str]]] = []
    erasure = UserErasure(database, lambda app_id, user_id: told.append((app_id, user_id)))

    async def announce() -> None:
        announced.append(list(told))

    conn = await asyncpg.connect(database_urls.admin_url)
    try:
        async with conn.transaction():
            await conn.execute("LOCK TABLE events IN ACCESS EXCLUSIVE MODE")  # the erasure does without events
            done = await erasure.erase("shop", "u1", announce)
    finally:
        await conn.close()
    assert done is None
    assert announced == [[("shop", "u1")]]
    left = await erasure.rows_of("shop", "u1")
    assert [name for name in left if not USER_TABLES[name].stays] == []
