"""Reads tools/migrations.toml, and finds which existing tables the text of a migration names."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
REGISTRY = ROOT / "tools" / "migrations.toml"
MIGRATIONS = ROOT / "server" / "syncbeat_server" / "storage" / "migrations"
LAST_UNREGISTERED = 23
"""The number of the last migration that was written before there was a registry."""

_COMMENT = re.compile(r"--[^\n]*|/\*.*?\*/", re.DOTALL)
_CREATE = re.compile(r"\bCREATE\s+(?:UNLOGGED\s+)?TABLE\s+(?:IF\s+NOT\s+EXISTS\s+)?(\w+)", re.IGNORECASE)
_WORD = re.compile(r"[a-z_][a-z0-9_]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class RegisteredMigration:
    """Entry of a migration: its file, the existing tables it touches, the commit of the server before it."""

    file: Path
    tables: tuple[str, ...]
    before: str


def name_of(file: Path) -> str:
    """Return the name of a migration's file without its number, which may change when branches meet."""
    return file.stem.partition("_")[2]


def registered_files(folder: Path = MIGRATIONS) -> list[Path]:
    """Return the files that the registry must have, in order."""
    return [file for file in sorted(folder.glob("*.sql")) if int(file.name[:4]) > LAST_UNREGISTERED]


def load_registry(registry: Path = REGISTRY, folder: Path = MIGRATIONS) -> list[RegisteredMigration]:
    """Return the entries of the migrations that have one, in order. Raises TypeError for a field it does not know."""
    entries: Mapping[str, Mapping[str, Any]] = tomllib.loads(registry.read_text(encoding="utf-8"))["migrations"]
    known = {name_of(file): file for file in registered_files(folder)}
    return [_entry(file, **entries[name]) for name, file in known.items() if name in entries]


def _entry(file: Path, *, tables: Sequence[str], before: str) -> RegisteredMigration:
    return RegisteredMigration(file, tuple(tables), before)


def touched_tables(file: Path, folder: Path = MIGRATIONS) -> set[str]:
    """Return the tables of earlier migrations whose names stand in a migration's text, comments aside.

    Also in strings and bodies of functions: a DO block puts names into statements, and a foreign key locks what it
    refers to.
    """
    earlier = [other for other in sorted(folder.glob("*.sql")) if other.name < file.name]
    existing = {table for other in earlier for table in _CREATE.findall(other.read_text(encoding="utf-8"))}
    text = file.read_text(encoding="utf-8")
    return existing & set(_WORD.findall(_COMMENT.sub(" ", text)))


def registry_faults(registry: Path = REGISTRY, folder: Path = MIGRATIONS) -> Iterator[str]:
    """Yield what is wrong with the registry."""
    names: Mapping[str, Mapping[str, Any]] = tomllib.loads(registry.read_text(encoding="utf-8"))["migrations"]
    files = {name_of(file): file for file in registered_files(folder)}
    for name in files.keys() - names.keys():
        yield f"{files[name].name}: has no entry [migrations.{name}] in {registry.name}"
    for name in names.keys() - files.keys():
        yield f"[migrations.{name}]: there is no such migration above {LAST_UNREGISTERED:04}"
    for entry in load_registry(registry, folder):
        touched = touched_tables(entry.file, folder)
        if touched != set(entry.tables):
            yield f"{entry.file.name}: names {sorted(touched)}, and its entry says {sorted(entry.tables)}"
        if not _COMMIT.fullmatch(entry.before):
            yield f"{entry.file.name}: before: want the full hash of a commit"
