"""Collects and prints what a comparison found, for `verify` and `reconcile`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from syncbeat_server.transfer.model import spelled

if TYPE_CHECKING:
    from collections.abc import Mapping

    from syncbeat_server.transfer.compare.comparison import Difference, ScopeSums
    from syncbeat_server.transfer.compare.entries import SpooledExport
    from syncbeat_server.transfer.compare.spool import EntryKind
    from syncbeat_server.transfer.compare.verification import Verification
    from syncbeat_server.transfer.model import Path


@dataclass
class ComparisonReport:
    """Keeps the first differences and scopes with differences, up to `limit` each, and counts the others."""

    limit: int
    shown: list[tuple[Difference, Path]] = field(default_factory=list)
    scopes: list[tuple[EntryKind, ScopeSums]] = field(default_factory=list)
    differences: int = 0
    newer: int = 0
    scopes_that_differ: int = 0
    inner: Mapping[tuple[str, str], list[Path]] = field(default_factory=dict)
    """Of some values that differ, by scope and key: where they do."""

    def add_difference(self, difference: Difference, path: Path) -> None:
        """Add a difference; one of what is newer here is counted only."""
        if difference.is_newer:
            self.newer += 1
            return
        self.differences += 1
        if len(self.shown) < self.limit:
            self.shown.append((difference, path))

    def add_scope(self, kind: EntryKind, sums: ScopeSums) -> None:
        """Add the sums of a scope; those without differences count in the totals only."""
        if sums.differences:
            self.scopes_that_differ += 1
            if len(self.scopes) < self.limit:
                self.scopes.append((kind, sums))

    def changed_values(self, most: int) -> list[tuple[str, str]]:
        """Return scope and key of the first values shown that are on both sides."""
        changed = [(one.scope, one.name) for one, _ in self.shown if (one.kind, one.finding) == ("value", "differs")]
        return changed[:most]

    def as_text(self, verification: Verification, export: SpooledExport) -> str:
        """Return the report for people."""
        lines = [f"{one.finding}: {spelled(path)}{self._places(one)} ({_names(one)})" for one, path in self.shown]
        if self.differences > len(self.shown):
            lines.append(f"... and {self.differences - len(self.shown)} other differences (--limit shows more)")
        lines += [
            f"{kind} of {sums.scope!r}: {sums.here.count} here, {sums.there.count} in the export, "
            f"{sums.differences} differ"
            for kind, sums in self.scopes
        ]
        if self.scopes_that_differ > len(self.scopes):
            lines.append(f"... and {self.scopes_that_differ - len(self.scopes)} other scopes")
        for kind, sums in verification.totals.items():
            same = "" if sums.here.checksum_hex != sums.there.checksum_hex else f", checksum {sums.here.checksum_hex}"
            lines.append(
                f"{kind}: {sums.here.count} here, {sums.there.count} in the export; {sums.differences} differ, "
                f"{sums.newer} newer here{same}"
            )
        lines += [
            f"{kind}: most of it is newer here, and was not judged: was this export begun at --source-time?"
            for kind in _mostly_newer(verification)
        ]
        lines += [f"not compared: {pattern}: {reason}: {count}" for (pattern, reason), count in _sorted(export)]
        return "\n".join(lines)

    def as_json(self, verification: Verification, export: SpooledExport) -> str:
        """Return the report for programs, in one line."""
        at = verification.exported_at
        document: dict[str, Any] = {
            "equal": not self.differences,
            "exported_at": None if at is None else at.isoformat(),
            "mostly_newer_here": _mostly_newer(verification),
            "kinds": {kind: _sums(sums) for kind, sums in verification.totals.items()},
            "differing_scopes": self.scopes_that_differ,
            "scopes": [{"kind": kind, "scope": sums.scope, **_sums(sums)} for kind, sums in self.scopes],
            "differences": [
                {
                    "kind": one.kind,
                    "finding": one.finding,
                    "path": list(path),
                    "scope": one.scope,
                    "name": one.name,
                    "at": self.inner.get((one.scope, one.name), []) if one.kind == "value" else [],
                }
                for one, path in self.shown
            ],
            "not_compared": [
                {"pattern": pattern, "reason": reason, "count": count} for (pattern, reason), count in _sorted(export)
            ],
        }
        return json.dumps(document, ensure_ascii=False)

    def _places(self, one: Difference) -> str:
        if (one.kind, one.finding) == ("member", "differs"):
            return " in its role"
        inner = self.inner.get((one.scope, one.name), []) if one.kind == "value" else []
        places = [spelled(path) for path in inner if path]
        return f" at {', '.join(places)}" if places else ""


def _sums(sums: ScopeSums) -> dict[str, Any]:
    return {
        "here": sums.here.count,
        "export": sums.there.count,
        "checksum_here": sums.here.checksum_hex,
        "checksum_export": sums.there.checksum_hex,
        "differences": sums.differences,
        "newer_here": sums.newer,
    }


def _mostly_newer(verification: Verification) -> list[str]:
    """Return the kinds of which more than half was made here after the export, which tells of a wrong time."""
    totals = verification.totals.items()
    return [kind.value for kind, sums in totals if 2 * sums.newer > max(sums.here.count, sums.there.count)]


def _names(one: Difference) -> str:
    return f"{one.kind} {one.name!r} of {one.scope!r}" if one.name else f"{one.kind} of {one.scope!r}"


def _sorted(export: SpooledExport) -> list[tuple[tuple[str, str], int]]:
    return sorted(((pattern, str(reason)), count) for (pattern, reason), count in export.misfits.items())
