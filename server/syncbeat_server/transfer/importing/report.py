"""Counts what became of the places of an export, and what did not fit, in bounded space."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import orjson

from syncbeat_server.transfer.model import Misfit, MisfitReason, spelled

MAX_MISFIT_ROWS = 200
"""The most pairs of a pattern and a reason; what comes beyond is counted together, by reason."""
OTHERS = "(other patterns)"
_MAX_EXAMPLE = 300


@dataclass(slots=True)
class MisfitCount:
    """Counts the places of one pattern that do not fit for one reason; `example` is the path of the first."""

    count: int
    example: str


@dataclass(slots=True)
class ImportReport:
    """Counts what became of targets, and of places that have none.

    Of values, `superseded` ones are those of which the feed has a later version; `present` are members, devices and
    preferences that were there, and stay as they are.
    """

    written: int = 0
    unchanged: int = 0
    superseded: int = 0
    members: int = 0
    devices: int = 0
    preferences: int = 0
    present: int = 0
    misfits: dict[tuple[str, MisfitReason], MisfitCount] = field(default_factory=dict)

    @property
    def changed(self) -> int:
        """Return how many rows were written."""
        return self.written + self.members + self.devices + self.preferences

    @property
    def taken(self) -> int:
        """Return how many targets the map made, whatever became of them."""
        return self.changed + self.unchanged + self.superseded + self.present

    @property
    def misfit_total(self) -> int:
        """Return how many places do not fit."""
        return sum(one.count for one in self.misfits.values())

    def add(self, other: ImportReport) -> ImportReport:
        """Return the sum of two reports."""
        total = ImportReport(*(getattr(self, name) + getattr(other, name) for name in _COUNTS))
        total.misfits = {key: MisfitCount(one.count, one.example) for key, one in self.misfits.items()}
        for (pattern, reason), one in other.misfits.items():
            total.count_misfit(pattern, reason, one.example, one.count)
        return total

    def add_misfits(self, misfits: Iterable[Misfit]) -> None:
        """Count places that do not fit."""
        for misfit in misfits:
            self.count_misfit(misfit.pattern, misfit.reason, spelled(misfit.path)[:_MAX_EXAMPLE])

    def count_misfit(self, pattern: str, reason: MisfitReason, example: str, count: int = 1) -> None:
        """Count places of a pattern that do not fit."""
        key = (pattern, reason)
        if key not in self.misfits and len(self.misfits) >= MAX_MISFIT_ROWS:
            key = (OTHERS, reason)
        found = self.misfits.setdefault(key, MisfitCount(0, example))
        found.count += count

    def to_json(self) -> str:
        """Return the report as JSON."""
        rows = [[pattern, reason.name, one.count, one.example] for (pattern, reason), one in self.misfits.items()]
        return orjson.dumps({**{name: getattr(self, name) for name in _COUNTS}, "misfits": rows}).decode()


_COUNTS = ("written", "unchanged", "superseded", "members", "devices", "preferences", "present")


def read_report(text: str) -> ImportReport:
    """Return the report that `ImportReport.to_json` wrote; a reason that a later version knows is left out."""
    stored = orjson.loads(text)
    report = ImportReport(*(stored[name] for name in _COUNTS))
    for pattern, reason, count, example in stored["misfits"]:
        if reason in MisfitReason.__members__:
            report.misfits[pattern, MisfitReason[reason]] = MisfitCount(count, example)
    return report
