"""Writes what is stored as the tree of the Realtime Database that a map makes it from, in the form of its exports."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal

from syncbeat_server.directory.model import Member, MemberRole, Platform, Registration
from syncbeat_server.storage.postgres.database import Row
from syncbeat_server.storage.postgres.snapshot import Snapshot
from syncbeat_server.transfer.export.app_document import AppSelection
from syncbeat_server.transfer.export.json_stream import JsonStream
from syncbeat_server.transfer.export.tree_spool import TreeSpool
from syncbeat_server.transfer.mapping.reverse import (
    member_entry,
    path_of_value,
    preferences_entry,
    registration_entry,
    source_time_entry,
)
from syncbeat_server.transfer.mapping.rules import TransferMap
from syncbeat_server.transfer.model import Json, Path
from syncbeat_server.transfer.rtdb.shapes import array_length, canonical, exported, is_index, json_text
from syncbeat_server.transfer.store import app_rows


@dataclass
class ExportedTree:
    """Counts what was written, and what was not: entries that the map does not make, and values that are empty."""

    entries: int = 0
    outside: int = 0
    empty: int = 0


async def spool_tree(
    snapshot: Snapshot, selected: AppSelection, transfer_map: TransferMap, spool: TreeSpool
) -> ExportedTree:
    """Read what is selected into a spool, by the paths that the map makes it from.

    Raises:
        ConfigurationError: the disk is full.
        DependencyDown: the database does not answer.
    """
    found = ExportedTree()

    def add(entry: tuple[Path, Json | None] | None) -> bool:
        if entry is None:
            found.outside += 1
        elif entry[1] is None:
            found.empty += 1
        else:
            found.entries += 1
            spool.add([(entry[0], json_text(entry[1]))])
            return True
        return False

    of = (selected.app_id, selected.scope, selected.user_id)
    async for row in app_rows.member_rows(snapshot, *of):
        add(member_entry(transfer_map, Member(row["scope"], row["user_id"], MemberRole(row["role"]))))
    if selected.scope is None:
        async for row in app_rows.device_rows(snapshot, selected.app_id, selected.user_id):
            add(_device(transfer_map, selected.app_id, row))
        async for row in app_rows.preference_rows(snapshot, selected.app_id, selected.user_id):
            add(preferences_entry(transfer_map, row["user_id"], app_rows.preferences_of(row)))
    # Last, since a value is more than what a membership at its path was taken from.
    async for row in app_rows.value_rows(snapshot, *of):
        if not row["deleted"]:
            path = path_of_value(transfer_map, row["scope"], row["key"])
            if add(None if path is None else (path, parse_value(row["value"]))):
                _add_time(transfer_map, row, spool)
    spool.settle_times()
    return found


def write_tree(spool: TreeSpool, write: Callable[[str], object]) -> None:
    """Write the spooled tree as one JSON document: `null` if it is empty, as RTDB has it."""
    writer = _TreeWriter(spool, JsonStream(write))
    is_empty = True
    for path, value in _merged(spool.entries()):
        writer.add(path, value)
        is_empty = False
    if is_empty:
        write("null\n")
    else:
        writer.close()


def parse_value(text: str) -> Json | None:
    """Return a stored value in canonical form, exactly; None if nothing is left of it."""
    return canonical(json.loads(text, parse_float=Decimal))


def _add_time(transfer_map: TransferMap, row: Row, spool: TreeSpool) -> None:
    made_at = row["source_time"] or row["changed_at"]
    entry = source_time_entry(transfer_map, row["scope"], row["key"], made_at)
    if entry is not None:
        spool.add_time(entry[0], json_text(entry[1]), made_at)


def _device(transfer_map: TransferMap, app_id: str, row: Row) -> tuple[Path, Json] | None:
    if row["registration_token"] is None:
        return None
    device = Registration(
        app_id,
        row["user_id"],
        row["device_id"],
        Platform(row["platform"]),
        row["registration_token"],
        time_zone=row["time_zone"],
        locale=row["locale"],
    )
    return registration_entry(transfer_map, device)


def _merged(entries: Iterator[tuple[Path, str]]) -> Iterator[tuple[Path, Json]]:
    """Yield the entries with those below them, which rules for parts of a value make, set into them."""
    outer: Path | None = None
    whole: Json | None = None
    for path, text in entries:
        value = parse_value(text)
        if outer is not None and path[: len(outer)] == outer:
            if not isinstance(whole, dict):  # `true` of a membership, or its role: there is more at its path
                whole = {}
            _set(whole, path[len(outer) :], value)
            continue
        if outer is not None and whole is not None:
            yield outer, whole
        outer, whole = path, value
    if outer is not None and whole is not None:
        yield outer, whole


def _set(whole: dict[str, Json], path: Path, value: Json | None) -> None:
    for key in path[:-1]:
        below = whole.get(key)
        if not isinstance(below, dict):
            below = whole[key] = {}
        whole = below
    if value is not None:
        whole[path[-1]] = value


class _TreeWriter:
    """Writes entries in order, with the objects and arrays above them."""

    def __init__(self, spool: TreeSpool, stream: JsonStream) -> None:
        self._spool = spool
        self._stream = stream
        self._path: Path = ()
        # Of each container that is open: the next index of an array, or -1 for an object.
        self._next: list[int] = []

    def add(self, path: Path, value: Json) -> None:
        """Write an entry."""
        shared = 0
        while shared < min(len(path), len(self._path)) - 1 and path[shared] == self._path[shared]:
            shared += 1
        while len(self._next) > shared + 1:
            self._end()
        while len(self._next) < len(path):
            self._begin(path[: len(self._next)])
        self._separate(path[-1], json_text(exported(value)))
        self._path = path

    def close(self) -> None:
        """End all that is open."""
        while self._next:
            self._end()

    def _begin(self, path: Path) -> None:
        is_array = self._is_array(path)
        key = path[-1] if path else None
        if self._next and self._next[-1] >= 0 and key is not None:
            self._fill(int(key))
            key = None
        self._stream.begin(key, is_array=is_array)
        self._next.append(0 if is_array else -1)

    def _separate(self, key: str, value_json: str) -> None:
        if self._next[-1] >= 0:
            self._fill(int(key))
            self._stream.item(value_json)
        else:
            self._stream.member(key, value_json)

    def _fill(self, index: int) -> None:
        for _ in range(self._next[-1], index):
            self._stream.item("null")
        self._next[-1] = index + 1

    def _end(self) -> None:
        self._next.pop()
        self._stream.end()

    def _is_array(self, path: Path) -> bool:
        keys: dict[str, None] = {}
        for key in self._spool.children(path):
            if not is_index(key):
                return False
            keys[key] = None
        return array_length(keys) is not None
