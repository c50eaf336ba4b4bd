"""Cuts an export into batches of targets that are ready to be written."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import IO, NamedTuple, TypeAlias

from syncbeat_server.defaults import VALUE_OCTETS
from syncbeat_server.directory.model import Member, Registration
from syncbeat_server.errors import FieldReason
from syncbeat_server.sync.content.json_limits import content_fault, reason_of
from syncbeat_server.sync.model import NewChange
from syncbeat_server.transfer.importing.stored_size import MAY_PASS_OCTETS, passes_limit
from syncbeat_server.transfer.mapping.forward import targets_of
from syncbeat_server.transfer.mapping.rules import TransferMap
from syncbeat_server.transfer.model import FeedValue, Json, Misfit, MisfitReason, Path, Target, UserPreferences, spelled
from syncbeat_server.transfer.rtdb.reading import MAX_DEPTH, Entry, read_entries
from syncbeat_server.transfer.rtdb.shapes import json_text

MAX_BATCH_OCTETS = 2 << 20
"""The most octets of values in a batch, beside its last value: it bounds memory, and the time of a statement."""

_NUL = "\\u0000"
_FAULT_REASONS = {
    FieldReason.OUT_OF_RANGE: MisfitReason.NUMBER,
    FieldReason.TOO_LONG: MisfitReason.TOO_LARGE,
    FieldReason.TOO_DEEP: MisfitReason.TOO_DEEP,
    FieldReason.FORBIDDEN_CHARACTERS: MisfitReason.NUL,
    FieldReason.MALFORMED: MisfitReason.REFUSED_VALUE,
}

WritableTarget: TypeAlias = NewChange | Member | Registration | UserPreferences


class Item(NamedTuple):
    """Holds one target that is to be written, and the place it comes from: its number from 1 on, pattern and path."""

    place: int
    pattern: str
    path: Path
    target: WritableTarget


class PlacedMisfit(NamedTuple):
    """Holds a misfit, and the number of its place, as of an `Item`."""

    place: int
    misfit: Misfit


@dataclass(frozen=True, slots=True)
class Batch:
    """Holds the targets of places up to the number `places`, and those places that do not fit."""

    items: Sequence[Item]
    misfits: Sequence[PlacedMisfit]
    places: int


@dataclass(frozen=True, slots=True)
class ImportSource:
    """Says what an import is made from: the map, the app, and the time as of which the export was made.

    No value of an export is later than that; those without a time of their own are of it.
    """

    transfer_map: TransferMap
    app_id: str
    source_time: datetime


class BatchReader:
    """Reads batches from an export, after those places that are done."""

    def __init__(self, source: ImportSource, export: IO[bytes], done: int = 0) -> None:
        self._source = source
        self._entries: Iterator[tuple[int, Entry]] = enumerate(read_entries(export, source.transfer_map.root), 1)
        self._done = done

    def next_batch(self, size: int) -> Batch | None:
        """Return the next places, at most `size`; None at the end. Raises ConfigurationError: the export is broken."""
        if self._done:
            next(itertools.islice(self._entries, self._done - 1, None), None)
            self._done = 0
        items: list[Item] = []
        misfits: list[PlacedMisfit] = []
        number, octets = 0, 0
        for number, entry in itertools.islice(self._entries, size):
            for target in targets_of(self._source.transfer_map, self._source.app_id, entry):
                ready = target if isinstance(target, Misfit) else self._ready(target)
                if isinstance(ready, MisfitReason):
                    ready = Misfit(spelled(entry.node.pattern), entry.path, ready)
                if isinstance(ready, Misfit):
                    misfits.append(PlacedMisfit(number, ready))
                    continue
                items.append(Item(number, spelled(entry.node.pattern), entry.path, ready))
                if isinstance(ready, NewChange):
                    octets += len(ready.merge_patch_json)
            if octets >= MAX_BATCH_OCTETS:
                break
        return Batch(items, misfits, number) if number else None

    def _ready(self, target: Target) -> WritableTarget | MisfitReason:
        if not isinstance(target, FeedValue):
            return target
        text = checked_text(target.value)
        if isinstance(text, MisfitReason):
            return text
        made = self._source.source_time
        if target.source_time is not None:
            made = min(made, target.source_time)  # clocks of phones run ahead
        return NewChange(target.scope, target.key, text, source_time=made)


def checked_text(value: Json) -> str | MisfitReason:
    """Return a value as the JSON that is stored of it, or why it cannot be stored."""
    odd_numbers: list[Decimal] = []
    text = json_text(value, odd_numbers)
    if len(text) > VALUE_OCTETS or (not text.isascii() and len(text.encode()) > VALUE_OCTETS):
        return MisfitReason.TOO_LARGE
    # All else that is checked takes as long as reading the value, and few values can fail it.
    if odd_numbers or _NUL in text or text.count("{") > MAX_DEPTH:
        fault = content_fault(text, MAX_DEPTH)
        if fault:
            return _FAULT_REASONS[reason_of(fault)]
    if (odd_numbers or len(text) > MAY_PASS_OCTETS) and passes_limit(value):
        return MisfitReason.TOO_LARGE
    return text
