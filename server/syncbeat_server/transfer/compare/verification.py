"""Verifies that what is stored is what an export has, kind by kind, and notes which keys are to be mended."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial

from syncbeat_server.storage.postgres.snapshot import Snapshot
from syncbeat_server.transfer.compare import entries
from syncbeat_server.transfer.compare.comparison import Difference, Finding, ScopeSums, compare
from syncbeat_server.transfer.compare.entries import SpooledExport, StoredEntry
from syncbeat_server.transfer.compare.spool import EntryKind, Spool
from syncbeat_server.transfer.mapping.reverse import pattern_of_value
from syncbeat_server.transfer.mapping.rules import DeviceRule, MemberRule, PreferencesRule, TransferMap, ValueRule
from syncbeat_server.transfer.model import Path, spelled

_RULES_OF = {
    EntryKind.VALUE: ValueRule,
    EntryKind.MEMBER: MemberRule,
    EntryKind.DEVICE: DeviceRule,
    EntryKind.PREFERENCES: PreferencesRule,
}
_CLOCK_MARGIN = timedelta(seconds=60)
"""By how much the clock that the export was begun by may be ahead of those by which values are made."""


@dataclass(frozen=True)
class Verification:
    """Compares one export, whose entries are in a spool, with what is stored.

    Attributes:
        transfer_map: The rules by which the export was read; only what they make is compared.
        app_id: The app.
        spool: What the export has.
        export: What was counted as it was read.
        exported_at: From when the export is; None: nothing here is newer.
        totals: The sums of each kind that the map has rules for; whole once all differences were taken.
        kept: The values that a mending does not delete though the export lacks them, by pattern: it has none of those,
            as a partial export has.
    """

    transfer_map: TransferMap
    app_id: str
    spool: Spool
    export: SpooledExport
    exported_at: datetime | None = None
    totals: dict[EntryKind, ScopeSums] = field(default_factory=dict, init=False)
    kept: Counter[str] = field(default_factory=Counter, init=False)

    @property
    def as_of(self) -> datetime | None:
        """The time after which what was made here is newer, and no fault: that of the export, less a margin."""
        return None if self.exported_at is None else self.exported_at - _CLOCK_MARGIN

    async def differences(
        self, snapshot: Snapshot, on_scope: Callable[[EntryKind, ScopeSums], None]
    ) -> AsyncIterator[tuple[Difference, Path]]:
        """Yield each difference with its path in the export; `on_scope` is called with the sums of each scope.

        Raises:
            DependencyDown: the database does not answer.
        """
        for kind, rule in _RULES_OF.items():
            if not any(isinstance(one, rule) for one in self.transfer_map.rules):
                continue
            self.totals[kind] = total = ScopeSums()
            there = self.spool.entries(kind)
            told = partial(_add_scope, total, on_scope)
            found = compare(kind, self._stored(snapshot, kind), there, self.as_of, self._is_unknown, told)
            async for difference in found:
                yield difference, self._path_of(difference)

    def note_wanted(self, differences: Iterable[Difference]) -> None:
        """Note the keys of those differences that a mending writes: of values, where nothing here is newer."""
        self.spool.want(
            (one.scope, one.name, one.finding is not Finding.EXTRA)
            for one in differences
            if one.kind is EntryKind.VALUE and not one.is_newer and not self._is_kept(one)
        )

    def _is_kept(self, one: Difference) -> bool:
        if one.finding is not Finding.EXTRA:
            return False
        pattern = pattern_of_value(self.transfer_map, one.scope, one.name)
        if pattern is None or pattern in self.export.value_patterns:
            return False
        self.kept[spelled(pattern)] += 1
        return True

    def _stored(self, snapshot: Snapshot, kind: EntryKind) -> AsyncIterator[StoredEntry]:
        if kind is EntryKind.VALUE:
            return entries.stored_values(snapshot, self.transfer_map, self.app_id)
        if kind is EntryKind.MEMBER:
            return entries.stored_members(snapshot, self.transfer_map, self.app_id)
        if kind is EntryKind.DEVICE:
            return entries.stored_devices(snapshot, self.app_id)
        return entries.stored_preferences(snapshot, self.transfer_map, self.app_id)

    def _is_unknown(self, one: Difference) -> bool:
        # What the export has at its path did not fit, which is not to be taken for its absence.
        return one.kind in (EntryKind.VALUE, EntryKind.MEMBER) and self.spool.is_misfit(self._path_of(one))

    def _path_of(self, one: Difference) -> Path:
        return entries.path_of(self.transfer_map, one.kind, one.scope, one.name, one.digest)


def _add_scope(
    total: ScopeSums, on_scope: Callable[[EntryKind, ScopeSums], None], kind: EntryKind, sums: ScopeSums
) -> None:
    total.add_all(sums)
    on_scope(kind, sums)
