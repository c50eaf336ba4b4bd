"""Each new migration is registered: what it touches, and which server runs before it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.migration_registry import load_registry, registered_files, registry_faults, touched_tables

pytestmark = pytest.mark.unit

COMMIT = "0123456789" * 4


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Migrations of which the last two need an entry."""
    (tmp_path / "0001_first.sql").write_text("CREATE TABLE users (id text); CREATE TABLE scopes (id text);")
    (tmp_path / "0024_new.sql").write_text("-- Beside users.\nCREATE TABLE fresh (id text);")
    (tmp_path / "0025_more.sql").write_text("ALTER TABLE users ADD COLUMN x text REFERENCES fresh;")
    return tmp_path


def faults(folder: Path, text: str) -> list[str]:
    registry = folder / "registry.toml"
    registry.write_text(f"[migrations]\n{text}")
    return sorted(registry_faults(registry, folder))


def entry(name: str, *tables: str, before: str = COMMIT) -> str:
    return f'[migrations.{name}]\ntables = {list(tables)}\nbefore = "{before}"\n'


def test_migration_registry_is_whole() -> None:
    assert list(registry_faults()) == []
    assert len(load_registry()) == len(registered_files())


def test_migration_without_entry_is_a_fault(folder: Path) -> None:
    assert faults(folder, entry("new") + entry("more", "users", "fresh")) == []
    assert faults(folder, entry("new")) == ["0025_more.sql: has no entry [migrations.more] in registry.toml"]
    gone = faults(folder, entry("new") + entry("more", "users", "fresh") + entry("gone"))
    assert gone == ["[migrations.gone]: there is no such migration above 0023"]


def test_migration_that_touches_other_tables_than_declared_is_a_fault(folder: Path) -> None:
    (fault,) = faults(folder, entry("new") + entry("more"))
    assert fault == "0025_more.sql: names ['fresh', 'users'], and its entry says []"
    (fault,) = faults(folder, entry("new", before="28cce341") + entry("more", "users", "fresh"))
    assert "full hash" in fault


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE INDEX i ON users (id);",
        "CREATE TABLE t (id text REFERENCES users);",
        "DO $$ BEGIN EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', 'users'); END $$;",
        "CREATE FUNCTION f() RETURNS bigint LANGUAGE sql AS $$ SELECT count(*) FROM users $$;",
        "CREATE TRIGGER t AFTER UPDATE ON users FOR EACH ROW EXECUTE FUNCTION f();",
    ],
)
def test_existing_table_is_found_in_a_migration(folder: Path, sql: str) -> None:
    file = folder / "0026_touches.sql"
    file.write_text(sql)
    assert touched_tables(file, folder) == {"users"}
