"""Checks who reads and writes each table, from the SQL of the service, against tools/table_owners.toml.

Each table has one folder that writes it; folders beside that may read it if they are declared, with a reason. Reads by
triggers and functions of the migrations are the database's own, and are not looked at. Run as a module:
`python -m tools.check_tables`.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tools.sql_tables import BUILT, Access, TableUse, created_tables, table_uses

ROOT = Path(__file__).resolve().parent.parent
SERVER = ROOT / "server" / "syncbeat_server"
OWNERS = ROOT / "tools" / "table_owners.toml"
BUILDERS = {"delete_oldest_sql": 0}
"""Functions that put a DELETE together, with the position of the argument that names its table."""


@dataclass(frozen=True)
class TableOwner:
    """Owner of a table: the folder that writes it, and others with the reason why they may read or write it."""

    written_by: str
    readers: Mapping[str, str] = field(default_factory=dict)
    also_written_by: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class BuiltName:
    """Permission of a file to put table names together: its reason, and the tables that it names so."""

    reason: str
    tables: tuple[str, ...]


@dataclass(frozen=True)
class Declaration:
    """Content of table_owners.toml."""

    tables: Mapping[str, TableOwner]
    built: Mapping[str, BuiltName]


def main() -> int:
    """Print every finding as `path:line: text`; return 1 if there is one."""
    findings = list(check(SERVER, load_declaration(OWNERS)))
    for finding in findings:
        print(finding)
    return 1 if findings else 0


def load_declaration(path: Path) -> Declaration:
    """Read the declaration. Raises TypeError for a field that it does not have."""
    document = tomllib.loads(path.read_text(encoding="utf-8"))
    return Declaration(
        tables={name: TableOwner(**owner) for name, owner in document["tables"].items()},
        built={
            name: BuiltName(reason=one["reason"], tables=tuple(one["tables"]))
            for name, one in document.get("built", {}).items()
        },
    )


def check(server: Path, declaration: Declaration) -> Iterator[str]:
    """Yield each access that is not declared, and each declaration that no statement or migration bears out."""
    used: set[tuple[str, Access, str]] = set()
    built_in: set[str] = set()
    for use in sorted(set(table_uses(server, BUILDERS))):
        file = use.path.relative_to(server)
        folder = file.parent.as_posix()
        place = f"{use.path.relative_to(server.parent.parent)}:{use.line}"
        if use.table == BUILT:
            built_in.add(file.as_posix())
            if file.as_posix() not in declaration.built:
                yield f"{place}: {use.access} a table whose name is put together: write it out"
            continue
        used.add((use.table, use.access, folder))
        fault = _fault(use, folder, declaration)
        if fault:
            yield f"{place}: {fault}"
    yield from _stale(declaration, used, built_in, created_tables(server))


def _fault(use: TableUse, folder: str, declaration: Declaration) -> str:
    owner = declaration.tables.get(use.table)
    if owner is None:
        return f"{use.access} the table {use.table}, which is not declared"
    if _is_below(folder, owner.written_by):
        return ""
    if use.access is Access.WRITE:
        allowed = any(_is_below(folder, other) for other in owner.also_written_by)
        return "" if allowed else f"{folder} writes {use.table}, which {owner.written_by} owns"
    others = (*owner.readers, *owner.also_written_by)
    allowed = any(_is_below(folder, other) for other in others)
    return "" if allowed else f"{folder} reads {use.table} of {owner.written_by} without being declared as a reader"


def _stale(
    declaration: Declaration, used: set[tuple[str, Access, str]], built_in: set[str], created: frozenset[str]
) -> Iterator[str]:
    """Yield the declarations that are not needed, and the tables that are not declared."""
    for name in sorted(created ^ declaration.tables.keys()):
        yield f"tools/table_owners.toml:1: {name} is {'not declared' if name in created else 'no table'}"
    for name, owner in declaration.tables.items():
        for access, folders in (
            (Access.WRITE, (owner.written_by, *owner.also_written_by)),
            (Access.READ, tuple(owner.readers)),
        ):
            for folder in folders:
                if not any(u[:2] == (name, access) and _is_below(u[2], folder) for u in used):
                    yield f"tools/table_owners.toml:1: {folder} {access} {name} by no statement"
        for folder, reason in (*owner.readers.items(), *owner.also_written_by.items()):
            if not reason.strip():
                yield f"tools/table_owners.toml:1: {folder} has no reason to use {name}"
    for file, built in declaration.built.items():
        if file not in built_in or not built.reason.strip() or not set(built.tables) <= created:
            yield f"tools/table_owners.toml:1: {file} puts no name together, has no reason, or names no tables"


def _is_below(folder: str, owner: str) -> bool:
    return folder == owner or folder.startswith(f"{owner}/")


if __name__ == "__main__":
    sys.exit(main())
