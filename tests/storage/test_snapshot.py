"""A snapshot reads one moment by several cursors, changes nothing, and holds no other transaction up."""

from __future__ import annotations

import pytest

from syncbeat_server.errors import DependencyDown
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.storage.postgres.snapshot import ROWS_PER_FETCH, open_snapshot
from syncbeat_server.transfer.export.ordered_rows import OrderedRows, first_name
from tests.support.databases import DatabaseUrls, run_sql

pytestmark = pytest.mark.store

MANY = 3 * ROWS_PER_FETCH + 1
INSERT = "INSERT INTO scopes (app_id, scope, created_at) SELECT $1, 's' || n, now() FROM generate_series(1, $2::int) n"


async def fill(database: Database, app_id: str, rows: int) -> None:
    async with database.connection() as conn:
        await conn.execute(INSERT, app_id, rows)


async def test_snapshot_reads_one_moment_with_interleaved_cursors(database: Database) -> None:
    await fill(database, "a", MANY)
    query = "SELECT scope, app_id FROM scopes WHERE app_id = $1 ORDER BY scope"
    async with open_snapshot(database) as snapshot:
        first, second = snapshot.rows(query, "a"), snapshot.rows(query, "a")
        seen = [(await anext(first))["scope"]]
        await fill(database, "b", 1)
        async with database.connection() as conn:
            await conn.execute("DELETE FROM scopes WHERE app_id = 'a'")
        others = [row["scope"] async for row in second]
        seen += [row["scope"] async for row in first]
        assert [row async for row in snapshot.rows(query, "b")] == []
    assert seen == others == sorted(f"s{number}" for number in range(1, MANY + 1))
    async with open_snapshot(database) as later:
        assert [row["scope"] async for row in later.rows(query, "b")] == ["s1"]


async def test_sized_rows_bring_some_megabytes_at_once(database: Database) -> None:
    sizes = [1 << 20, 10, 3 << 20, 5 << 20, 10, *[1] * 600, 4 << 20]
    values = "SELECT n, repeat('x', octets) AS value FROM unnest($1::int[]) WITH ORDINALITY AS k (octets, n) ORDER BY n"
    async with open_snapshot(database) as snapshot:
        query = "SELECT octets FROM unnest($1::int[]) WITH ORDINALITY AS k (octets, n) ORDER BY n"
        found = [(row["n"], len(row["value"])) async for row in snapshot.sized_rows(values, query, sizes)]
    assert found == list(enumerate(sizes, 1))


async def write_in_snapshot(database: Database) -> None:
    async with open_snapshot(database) as snapshot:
        deletion = "SELECT * FROM syncbeat_delete_old_audit(interval '30 days', 1, timestamptz '2000-01-01')"
        await anext(snapshot.rows(deletion))


async def test_snapshot_writes_nothing_and_has_no_transaction_id(database: Database) -> None:
    async with open_snapshot(database) as snapshot:
        rows = [row async for row in snapshot.rows("SELECT pg_current_xact_id_if_assigned() IS NULL AS free")]
        assert rows[0]["free"]
    with pytest.raises(DependencyDown) as caught:  # as of a server that takes no writes
        await write_in_snapshot(database)
    assert getattr(caught.value.__cause__, "sqlstate", "") == "25006"
    async with database.connection() as conn:
        assert await conn.fetchval("SELECT 1") == 1


async def test_ordered_rows_are_joined_group_by_group(database: Database, database_urls: DatabaseUrls) -> None:
    await run_sql(
        database_urls.admin_url,
        """INSERT INTO scopes (app_id, scope, created_at)
           SELECT 'a', name, now() FROM unnest(ARRAY['A', 'b', 'é', '😀', 'z']) AS k (name)""",
        """INSERT INTO scope_members (app_id, user_id, scope, role, added_at)
           SELECT 'a', 'u' || n, scope, 'WRITER', now() FROM scopes, generate_series(1, 2) n WHERE scope <> 'b'""",
    )
    async with open_snapshot(database) as snapshot:
        members = OrderedRows(
            snapshot.rows("SELECT scope, user_id FROM scope_members WHERE app_id = 'a' ORDER BY scope, user_id"),
            "scope",
        )
        assert await first_name(members) == "A"
        assert [row["user_id"] async for row in members.group("A")] == ["u1", "u2"]
        assert [row["user_id"] async for row in members.group("b")] == []
        assert [row["user_id"] async for row in members.group("é")] == ["u1", "u2"]
        assert [row["user_id"] async for row in members.group("😀")] == ["u1", "u2"]
        assert await first_name(members) is None
