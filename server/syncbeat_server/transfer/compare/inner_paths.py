"""Finds where inside of two values they differ, for the first of those that do."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import IO, Any

import orjson

from syncbeat_server.storage.postgres.snapshot import Snapshot
from syncbeat_server.transfer.compare.comparable_form import comparable
from syncbeat_server.transfer.mapping.forward import targets_of
from syncbeat_server.transfer.mapping.rules import TransferMap
from syncbeat_server.transfer.model import FeedValue, Path
from syncbeat_server.transfer.rtdb.reading import read_entries
from syncbeat_server.transfer.rtdb.shapes import json_text
from syncbeat_server.transfer.store import app_rows

MOST_VALUES = 20
"""Values that are looked into: two of 1 MiB each in memory, and more would not be read by anybody."""
_MOST_PATHS = 5

FeedKey = tuple[str, str]
"""A scope and a key."""


def differing_paths(here: str, there: str) -> list[Path]:
    """Return the first paths inside of two values, as JSON texts, at which they differ. Raises ValueError: no JSON."""
    found: list[Path] = []
    for path in _differing(orjson.loads(comparable(here)), orjson.loads(comparable(there)), ()):
        found.append(path)
        if len(found) == _MOST_PATHS:
            break
    return found


async def stored_texts(snapshot: Snapshot, app_id: str, keys: Collection[FeedKey]) -> Mapping[FeedKey, str]:
    """Return the values of some keys as JSON. Raises DependencyDown: the database does not answer."""
    rows = app_rows.some_values(snapshot, app_id, keys)
    return {(row["scope"], row["key"]): row["value"] async for row in rows}


def inner_differences(
    export: IO[bytes], transfer_map: TransferMap, app_id: str, here: Mapping[FeedKey, str]
) -> Mapping[FeedKey, list[Path]]:
    """Return where values differ from those of an export, which is read from its beginning, up to the last of them.

    Raises:
        ConfigurationError: the file is no JSON document with an object.
    """
    found: dict[FeedKey, list[Path]] = {}
    compared = transfer_map.without_source_times()
    entries = read_entries(export, compared.root)
    while here.keys() - found.keys() and (entry := next(entries, None)) is not None:
        for target in targets_of(compared, app_id, entry):
            if isinstance(target, FeedValue) and (text := here.get((target.scope, target.key))) is not None:
                found[target.scope, target.key] = differing_paths(text, json_text(target.value))
    return found


def _differing(here: Any, there: Any, path: Path) -> Iterator[Path]:
    if isinstance(here, dict) and isinstance(there, dict):
        for key in sorted(here.keys() | there.keys()):
            if key in here and key in there:
                yield from _differing(here[key], there[key], (*path, key))
            else:
                yield (*path, key)
    elif type(here) is not type(there) or here != there:  # to Python 1 is True
        yield path
