"""Brings both sides of a comparison to entries: what an export has by its map, and what is stored."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from typing import IO, NamedTuple

from syncbeat_server.directory.model import Member, MemberRole, Preferences, Registration
from syncbeat_server.storage.postgres.snapshot import Snapshot
from syncbeat_server.transfer.compare.comparable_form import DIGEST_OCTETS, digest
from syncbeat_server.transfer.compare.spool import EntryKind, Spool, SpooledEntry
from syncbeat_server.transfer.importing.batches import checked_text
from syncbeat_server.transfer.mapping.forward import targets_of
from syncbeat_server.transfer.mapping.reverse import (
    member_entry,
    path_of_value,
    pattern_of_value,
    preferences_entry,
)
from syncbeat_server.transfer.mapping.rules import TransferMap
from syncbeat_server.transfer.model import FeedValue, Misfit, MisfitReason, Path, Target, spelled
from syncbeat_server.transfer.rtdb.reading import read_entries
from syncbeat_server.transfer.store import app_rows

_PROGRESS_EVERY = 1_000
_MOST_PATTERNS = 1_000
_ABSENT = (MisfitReason.UNMATCHED, MisfitReason.NOT_A_MEMBER)
"""Reasons that say that the export has no entry there."""


@dataclass
class SpooledExport:
    """Counts what was read of an export: its entries by kind, and what does not fit by pattern and reason.

    `value_patterns`: the patterns of the paths at which it has a value.
    """

    entries: Counter[EntryKind] = field(default_factory=Counter)
    value_patterns: set[Path | None] = field(default_factory=set)
    misfits: Counter[tuple[str, MisfitReason]] = field(default_factory=Counter)

    def count_misfit(self, misfit: Misfit) -> None:
        """Count a place that does not fit; the keys of a root may be any number, so that others count as one."""
        known = (misfit.pattern, misfit.reason)
        is_room = known in self.misfits or len(self.misfits) < _MOST_PATTERNS
        self.misfits[known if is_room else ("...", misfit.reason)] += 1


class StoredEntry(NamedTuple):
    """One entry as it is stored. Its digest is None for a tombstone; `made_at` is its source time, or its own."""

    scope: str
    name: str
    digest: bytes | None
    made_at: datetime


def spool_export(
    export: IO[bytes],
    transfer_map: TransferMap,
    app_id: str,
    spool: Spool,
    on_progress: Callable[[int], None] = lambda _: None,
) -> SpooledExport:
    """Read an export from its beginning into a spool; `on_progress` is called now and then with the places read.

    Raises:
        ConfigurationError: the file is no JSON document with an object, or the disk is full.
    """
    found = SpooledExport()
    compared = transfer_map.without_source_times()

    def entries() -> Iterator[SpooledEntry]:
        for place, entry in enumerate(read_entries(export, compared.root), 1):
            if place % _PROGRESS_EVERY == 0:
                on_progress(place)
            for target in targets_of(compared, app_id, entry):
                spooled = target if isinstance(target, Misfit) else _spooled(target)
                if isinstance(spooled, MisfitReason):
                    spooled = Misfit(spelled(entry.node.pattern), entry.path, spooled)
                if isinstance(spooled, Misfit):
                    found.count_misfit(spooled)
                    if spooled.reason not in _ABSENT:
                        spool.add_misfit(spooled.path)
                else:
                    found.entries[EntryKind(spooled.kind)] += 1
                    if spooled.kind is EntryKind.VALUE and len(found.value_patterns) < len(transfer_map.value_rules):
                        found.value_patterns.add(pattern_of_value(transfer_map, spooled.scope, spooled.name))
                    yield spooled

    spool.add(entries())
    return found


def _spooled(target: Target) -> SpooledEntry | MisfitReason:
    if isinstance(target, FeedValue):
        text = checked_text(target.value)
        if isinstance(text, MisfitReason):
            return text
        return SpooledEntry(EntryKind.VALUE, target.scope, target.key, digest(text))
    if isinstance(target, Member):
        return SpooledEntry(EntryKind.MEMBER, target.scope, target.user_id, _digest_of_role(target.role))
    if isinstance(target, Registration):
        content = _digest_of([target.platform, target.registration_token])
        return SpooledEntry(EntryKind.DEVICE, target.user_id, target.device_id, content)
    return SpooledEntry(EntryKind.PREFERENCES, target.user_id, "", _digest_of(_fields(target.preferences)))


async def stored_values(snapshot: Snapshot, transfer_map: TransferMap, app_id: str) -> AsyncIterator[StoredEntry]:
    """Yield the values and tombstones of those keys that the map makes, by scope and key. Raises DependencyDown."""
    async for row in app_rows.value_rows(snapshot, app_id, None, None):
        if path_of_value(transfer_map, row["scope"], row["key"]) is not None:
            content = None if row["deleted"] else digest(row["value"])
            yield StoredEntry(row["scope"], row["key"], content, row["source_time"] or row["changed_at"])


async def stored_members(snapshot: Snapshot, transfer_map: TransferMap, app_id: str) -> AsyncIterator[StoredEntry]:
    """Yield the memberships that the map makes, in this role or another, by scope and user. Raises DependencyDown."""
    async for row in app_rows.member_rows(snapshot, app_id, None, None):
        found = _digest_of_role(MemberRole(row["role"]))
        if _path_of_member(transfer_map, row["scope"], row["user_id"], found) is not None:
            yield StoredEntry(row["scope"], row["user_id"], found, row["added_at"])


async def stored_devices(snapshot: Snapshot, app_id: str) -> AsyncIterator[StoredEntry]:
    """Yield the devices that have a registration token, by user and id. Raises DependencyDown."""
    async for row in app_rows.device_rows(snapshot, app_id, None):
        if row["registration_token"] is not None:
            content = _digest_of([row["platform"], row["registration_token"]])
            yield StoredEntry(row["user_id"], row["device_id"], content, row["token_registered_at"])


async def stored_preferences(snapshot: Snapshot, transfer_map: TransferMap, app_id: str) -> AsyncIterator[StoredEntry]:
    """Yield the preferences that the map makes, by user. Raises DependencyDown."""
    async for row in app_rows.preference_rows(snapshot, app_id, None):
        found = app_rows.preferences_of(row)
        if preferences_entry(transfer_map, row["user_id"], found) is not None:
            yield StoredEntry(row["user_id"], "", _digest_of(_fields(found)), row["updated_at"])


def path_of(transfer_map: TransferMap, kind: EntryKind, scope: str, name: str, content: bytes) -> Path:
    """Return the path at which an entry stands in an export; of devices and preferences, their own names.

    `content` is the digest of the entry: a path may tell the role of a member.
    """
    if kind is EntryKind.VALUE:
        return path_of_value(transfer_map, scope, name) or (scope, name)
    if kind is EntryKind.MEMBER:
        return _path_of_member(transfer_map, scope, name, content) or (scope, name)
    return (f"({kind})", scope, *([name] if name else []))


def _path_of_member(transfer_map: TransferMap, scope: str, user_id: str, content: bytes) -> Path | None:
    """Return the path of a membership in the role of this digest; where the map cannot make that, in any other."""
    for role in sorted(MemberRole, key=lambda one: _digest_of_role(one) != content):
        entry = member_entry(transfer_map, Member(scope, user_id, role))
        if entry is not None:
            return entry[0]
    return None


def _fields(found: Preferences) -> Sequence[object]:
    quiet = found.quiet_hours
    hours = None if quiet is None else (quiet.start_minute, quiet.end_minute, quiet.zone)
    return [hours, found.max_per_day, sorted(found.muted_types)]


@cache
def _digest_of_role(role: MemberRole) -> bytes:
    return _digest_of([role])


def _digest_of(content: Sequence[object]) -> bytes:
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=DIGEST_OCTETS).digest()
