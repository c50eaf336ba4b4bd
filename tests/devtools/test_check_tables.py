"""The check of table ownership finds planted violations, and reads the SQL of the service as PostgreSQL does."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.check_tables import OWNERS, SERVER, Declaration, TableOwner, check, load_declaration
from tools.sql_tables import BUILT, Access, statement_tables

pytestmark = pytest.mark.unit

READ, WRITE = Access.READ, Access.WRITE
MIGRATION = "CREATE TABLE devices (id text); CREATE TABLE scopes (id text);"
DECLARED = Declaration(
    {
        "devices": TableOwner("directory/store", {"sync/store": "hints go by them"}),
        "scopes": TableOwner("sync/store", also_written_by={"directory/store": "creates them"}),
    },
    {},
)
GOOD = {
    "directory/store/devices.py": 'A = "INSERT INTO scopes VALUES (1)"\nB = "DELETE FROM devices"',
    "sync/store/scopes.py": 'A = "UPDATE scopes SET id = $1"\nB = "SELECT id FROM devices"',
}


def service(folder: Path, files: dict[str, str]) -> Path:
    """Write a service of these files, with a migration that creates two tables."""
    server = folder / "server" / "syncbeat_server"
    for name, text in {"storage/migrations/0001_all.sql": MIGRATION, **files}.items():
        path = server / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return server


def test_table_owners_of_the_service_are_as_declared() -> None:
    assert list(check(SERVER, load_declaration(OWNERS))) == []


def test_table_owners_accept_declared_access(tmp_path: Path) -> None:
    assert list(check(service(tmp_path, GOOD), DECLARED)) == []


@pytest.mark.parametrize(
    ("file", "code", "finding"),
    [
        (
            "push/store/a.py",
            'SQL = "UPDATE devices SET id = 1"',
            "push/store writes devices, which directory/store owns",
        ),
        ("sync/store/a.py", 'SQL = "DELETE FROM devices d"', "sync/store writes devices, which directory/store owns"),
        ("push/store/a.py", 'SQL = "SELECT 1 FROM scopes"', "push/store reads scopes of sync/store without being"),
        ("push/store/a.py", 'SQL = "WITH a AS (SELECT 1) SELECT * FROM a JOIN scopes USING (id)"', "reads scopes of"),
        ("sync/store/a.py", 'SQL = "SELECT 1 FROM phones"', "reads the table phones, which is not declared"),
        ("sync/store/a.py", 'SQL = f"SELECT 1 FROM {table}"', "reads a table whose name is put together"),
        ("sync/store/a.py", 'SQL = "DELETE FROM " + table', "writes a table whose name is put together"),
        ("sync/store/a.py", 'SQL = "DELETE FROM %s" % table', "writes a table whose name is put together"),
        ("sync/store/a.py", 'SQL = "UPDATE dev" + suffix + " SET id = 1"', "writes a table whose name is put together"),
        (
            "sync/store/a.py",
            "delete_oldest_sql('devices', 'id')",
            "sync/store writes devices, which directory/store owns",
        ),
        ("sync/store/a.py", "delete_oldest_sql(table, 'id')", "writes a table whose name is put together"),
        ("push/store/a.py", 'PART = "JOIN scopes s ON true"', "push/store reads scopes of sync/store without being"),
    ],
)
def test_table_owners_report_planted_violation(tmp_path: Path, file: str, code: str, finding: str) -> None:
    (found,) = check(service(tmp_path, {**GOOD, file: code}), DECLARED)
    assert found.startswith(f"server/syncbeat_server/{file}:1: ")
    assert finding in found


def test_table_owners_follow_names_that_are_put_together_from_constants(tmp_path: Path) -> None:
    parts = {
        "push/store/parts.py": 'TABLE = "scopes"\nFROM = f"FROM {TABLE}"',
        "push/store/a.py": "from syncbeat_server.push.store.parts import FROM\nSQL = f'SELECT 1 {FROM}'",
    }
    found = list(check(service(tmp_path, {**GOOD, **parts}), DECLARED))
    assert [one.partition(": ")[0] for one in found] == [
        "server/syncbeat_server/push/store/a.py:2",
        "server/syncbeat_server/push/store/parts.py:2",
    ]


@pytest.mark.parametrize(
    ("owner", "finding"),
    [
        (TableOwner("directory/store", {"sync/store": " "}), "sync/store has no reason to use devices"),
        (TableOwner("directory/store", {"sync/store": "x", "auth": "y"}), "auth reads devices by no statement"),
        (TableOwner("directory/store", {"sync/store": "x"}, {"push": "y"}), "push writes devices by no statement"),
    ],
)
def test_table_owners_report_stale_declaration(tmp_path: Path, owner: TableOwner, finding: str) -> None:
    declared = Declaration({**DECLARED.tables, "devices": owner}, {})
    (found,) = check(service(tmp_path, GOOD), declared)
    assert finding in found


def test_table_owners_report_tables_that_are_not_declared(tmp_path: Path) -> None:
    server = service(tmp_path, {**GOOD, "storage/migrations/0002_more.sql": "CREATE TABLE phones (id text);"})
    assert [one.partition(": ")[2] for one in check(server, DECLARED)] == ["phones is not declared"]


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT extract(epoch FROM created_at) FROM a", [(READ, "a")]),
        ("SELECT 1 FROM a, LATERAL (SELECT 1 FROM b) x, unnest($1::text[]) AS k (id), public.c", "abc"),
        ("UPDATE a SET x = 1 FROM b WHERE a.id = b.id AND a.x IS DISTINCT FROM b.x", [(WRITE, "a"), (READ, "b")]),
        ("INSERT INTO a SELECT 1 ON CONFLICT (id) DO UPDATE SET x = 1 RETURNING x", [(WRITE, "a")]),
        ("SELECT 1 FROM a FOR NO KEY UPDATE OF a SKIP LOCKED", [(READ, "a")]),
        ("DELETE FROM ONLY a t USING b, c WHERE true", [(WRITE, "a"), (READ, "b"), (READ, "c")]),
        ("WITH n (id) AS MATERIALIZED (SELECT 1 FROM a) SELECT 1 FROM n JOIN b ON n.id = b.id, c", "abc"),
        ("SELECT 1 -- FROM hidden\nFROM a WHERE x = 'FROM text'", [(READ, "a")]),
        ("SELECT 1 FROM pg_stat_activity", []),
        ("TRUNCATE a", [(WRITE, "a")]),
        ("MERGE INTO a USING b ON true WHEN MATCHED THEN UPDATE SET x = 1", [(WRITE, "a"), (READ, "b")]),
        ("DELETE FROM \0", [(WRITE, BUILT)]),
        ("DELETE FROM a\0 t", [(WRITE, BUILT)]),
        ("DELETE FROM a \0", [(WRITE, "a")]),
    ],
)
def test_sql_tables_of_statement(sql: str, expected: list[tuple[Access, str]] | str) -> None:
    wanted = [(READ, name) for name in expected] if isinstance(expected, str) else expected
    assert statement_tables(sql) == wanted
