"""Records what becomes of calls, at once in the series and in the totals."""

from __future__ import annotations

from dataclasses import dataclass, field

from syncbeat_devtools.soak.measure.series import Series, Totals
from syncbeat_devtools.soak.plan import Operation

NOT_SENT = "NOT_SENT"
"""The cause of a planned call that found too many in flight: it counts as failed, since a caller would have waited."""
_MOST_CAUSES = 200
_MOST_CHANGES = 500


@dataclass(frozen=True)
class OpenPush:
    """A push whose outcome is not known yet: for how long it is still looked at, and what the last look found."""

    notification_id: str
    left_s: float
    found: dict[str, int]


@dataclass
class Recorder:
    """Keeps the records of a run. Moments are seconds of the run; the time between two lives is not among them."""

    series: Series = field(default_factory=Series)
    totals: Totals = field(default_factory=Totals)
    verdicts: list[tuple[float, str]] = field(default_factory=list)
    """The moments at which the verdict about the last window changed; the last 500."""
    open_pushes: list[OpenPush] = field(default_factory=list)
    """The pushes whose outcome was not known when the records were saved."""

    def success(self, operation: Operation, ended_s: float, seconds: float) -> None:
        """Count a call that took `seconds` from the moment it was planned for."""
        for tally in (self.series.at(ended_s).tally(operation), self.totals.tally(operation)):
            tally.calls += 1
            tally.times.add(seconds)

    def failure(self, operation: Operation, ended_s: float, cause: str, *, is_server_fault: bool) -> None:
        """Count a call that failed."""
        for tally in (self.series.at(ended_s).tally(operation), self.totals.tally(operation)):
            tally.calls += 1
            tally.errors += 1
            tally.faults += is_server_fault
        name = f"{operation} {cause}"
        known = name in self.totals.causes or len(self.totals.causes) < _MOST_CAUSES
        self.totals.causes[name if known else "others"] += 1

    def staleness(self, at_s: float, seconds: float, *, by_stream: bool) -> None:
        """Count the age of a change when a device first had it."""
        point, totals = self.series.at(at_s), self.totals
        pair = (
            (point.stream_staleness, totals.stream_staleness)
            if by_stream
            else (point.poll_staleness, totals.poll_staleness)
        )
        for histogram in pair:
            histogram.add(seconds)

    def verdict(self, at_s: float, verdict: str) -> None:
        """Note the verdict about the last window, if it is another than before."""
        if not self.verdicts or self.verdicts[-1][1] != verdict:
            self.verdicts.append((at_s, verdict))
            del self.verdicts[:-_MOST_CHANGES]
