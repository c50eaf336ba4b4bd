"""Compares two sides that are in one order, entry by entry, with counts and checksums of each scope."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from syncbeat_server.transfer.compare.comparable_form import DIGEST_OCTETS
from syncbeat_server.transfer.compare.entries import StoredEntry
from syncbeat_server.transfer.compare.spool import EntryKind, SpooledEntry

_MODULUS = 1 << 8 * DIGEST_OCTETS


class Finding(StrEnum):
    """Names how the two sides differ in an entry."""

    MISSING = "missing here"
    EXTRA = "missing in the export"
    CHANGED = "differs"


class Difference(NamedTuple):
    """One entry in which the sides differ. `is_newer`: what is here was made after the export, deletions included.

    `digest`: of the content that the export has, else of what is here.
    """

    kind: EntryKind
    scope: str
    name: str
    finding: Finding
    is_newer: bool
    digest: bytes


@dataclass
class SideSums:
    """Counts entries and sums their digests, modulo 2^128, so that their order does not matter."""

    count: int = 0
    checksum: int = 0

    def add(self, digest: bytes) -> None:
        """Add an entry."""
        self.count += 1
        self.checksum = (self.checksum + int.from_bytes(digest)) % _MODULUS

    def add_all(self, other: SideSums) -> None:
        """Add the entries of another sum."""
        self.count += other.count
        self.checksum = (self.checksum + other.checksum) % _MODULUS

    @property
    def checksum_hex(self) -> str:
        """Return the checksum as hexadecimal digits."""
        return self.checksum.to_bytes(DIGEST_OCTETS).hex()


@dataclass
class ScopeSums:
    """Sums of one scope, or of all, on both sides, and the number of differences between them."""

    scope: str = ""
    here: SideSums = field(default_factory=SideSums)
    there: SideSums = field(default_factory=SideSums)
    differences: int = 0
    newer: int = 0

    def add_all(self, other: ScopeSums) -> None:
        """Add the sums of another scope."""
        self.here.add_all(other.here)
        self.there.add_all(other.there)
        self.differences += other.differences
        self.newer += other.newer


async def compare(
    kind: EntryKind,
    here: AsyncIterator[StoredEntry],
    there: Iterator[SpooledEntry],
    as_of: datetime | None,
    is_unknown: Callable[[Difference], bool],
    on_scope: Callable[[EntryKind, ScopeSums], None],
) -> AsyncIterator[Difference]:
    """Yield the differences between two sides in the order of scopes and names.

    Args:
        kind: What the entries are of.
        here: What is stored.
        there: What the export has.
        as_of: What was made here later is newer; None: nothing is.
        is_unknown: Returns True for an entry here of which it is unknown if the export has it: that is no difference.
        on_scope: Called with the sums of each scope when it is done.
    """
    sums = ScopeSums()
    async for scope, name, stored, exported in _paired(here, there):
        if scope != sums.scope:
            if sums.here.count or sums.there.count:
                on_scope(kind, sums)
            sums = ScopeSums(scope)
        own = None if stored is None else stored.digest
        if own is not None:
            sums.here.add(own)
        if exported is not None:
            sums.there.add(exported)
        content = own if exported is None else exported
        if content is None or own == exported:
            continue
        is_newer = stored is not None and as_of is not None and stored.made_at > as_of
        finding = Finding.MISSING if own is None else Finding.EXTRA if exported is None else Finding.CHANGED
        difference = Difference(kind, scope, name, finding, is_newer, content)
        if finding is Finding.EXTRA and is_unknown(difference):
            continue
        sums.newer += is_newer
        sums.differences += not is_newer
        yield difference
    if sums.here.count or sums.there.count:
        on_scope(kind, sums)


async def _paired(
    here: AsyncIterator[StoredEntry], there: Iterator[SpooledEntry]
) -> AsyncIterator[tuple[str, str, StoredEntry | None, bytes | None]]:
    """Yield each name that either side has, with what they have under it."""
    # Text of Python is in the order of code points, as UTF-8 is by octets on both sides.
    exported = next(there, None)
    async for stored in here:
        place = (stored.scope, stored.name)
        while exported is not None and (exported.scope, exported.name) < place:
            yield exported.scope, exported.name, None, exported.digest
            exported = next(there, None)
        if exported is not None and (exported.scope, exported.name) == place:
            yield *place, stored, exported.digest
            exported = next(there, None)
        else:
            yield *place, stored, None
    while exported is not None:
        yield exported.scope, exported.name, None, exported.digest
        exported = next(there, None)
