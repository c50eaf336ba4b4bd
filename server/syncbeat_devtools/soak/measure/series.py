"""Keeps what happened over time in a bounded number of points, which widen as a run grows longer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from syncbeat_devtools.soak.measure.histogram import COARSE, Histogram
from syncbeat_devtools.soak.plan import Operation

MOST_POINTS = 240
"""The points of a series: 48 hours have points of 1,024 s, and all of them with their histograms take about 1 MiB."""


@dataclass
class Tally:
    """Counts the calls of one operation: those that ended, that failed, and that failed by the server's fault."""

    calls: int = 0
    errors: int = 0
    faults: int = 0
    times: Histogram = field(default_factory=lambda: Histogram(COARSE))

    def merge(self, other: Tally) -> None:
        """Add what another counted."""
        self.calls += other.calls
        self.errors += other.errors
        self.faults += other.faults
        self.times.merge(other.times)


@dataclass
class Point:
    """Holds one span of a run: what was counted in it, and the last figures of the server read in it."""

    tallies: dict[Operation, Tally] = field(default_factory=dict)
    poll_staleness: Histogram = field(default_factory=lambda: Histogram(COARSE))
    stream_staleness: Histogram = field(default_factory=lambda: Histogram(COARSE))
    rss_octets: float | None = None
    cpu_s: float = 0.0
    """CPU seconds that the server used in it, as far as it was read."""

    def tally(self, operation: Operation) -> Tally:
        """Return the tally of an operation."""
        return self.tallies.setdefault(operation, Tally())

    def merge(self, later: Point) -> None:
        """Take in the point that follows this one."""
        for operation, tally in later.tallies.items():
            self.tally(operation).merge(tally)
        self.poll_staleness.merge(later.poll_staleness)
        self.stream_staleness.merge(later.stream_staleness)
        self.rss_octets = self.rss_octets if later.rss_octets is None else later.rss_octets
        self.cpu_s += later.cpu_s

    @property
    def counts(self) -> tuple[int, int, int]:
        """Return calls, errors and faults of all operations."""
        tallies = self.tallies.values()
        return (
            sum(one.calls for one in tallies),
            sum(one.errors for one in tallies),
            sum(one.faults for one in tallies),
        )


class Series:
    """The points of a run, each `width_s` seconds wide: once there are too many, two become one."""

    def __init__(self, width_s: float = 1.0, points: Iterable[Point] = ()) -> None:
        self.width_s = width_s
        self.points = list(points)

    def at(self, elapsed_s: float) -> Point:
        """Return the point of a moment of the run, made if it is new. A moment of the past keeps its point."""
        while (number := int(elapsed_s / self.width_s)) >= MOST_POINTS:
            self._widen()
        while len(self.points) <= number:
            self.points.append(Point())
        return self.points[number]

    def timed(self) -> Iterator[tuple[float, Point]]:
        """Yield the points with their middle moments, in seconds of the run."""
        for number, point in enumerate(self.points):
            yield (number + 0.5) * self.width_s, point

    def last_counts(self, window_s: float) -> tuple[int, int, int]:
        """Return calls, errors and faults of the last points that cover a window, the present one beside them."""
        counts = [point.counts for point in self.points[-(max(1, round(window_s / self.width_s)) + 1) :]]
        return (sum(one[0] for one in counts), sum(one[1] for one in counts), sum(one[2] for one in counts))

    def _widen(self) -> None:
        merged: list[Point] = []
        for number, point in enumerate(self.points):
            if number % 2:
                merged[-1].merge(point)
            else:
                merged.append(point)
        self.points = merged
        self.width_s *= 2


@dataclass
class Totals:
    """Holds what was counted over a whole run, with fine histograms."""

    tallies: dict[Operation, Tally] = field(default_factory=dict)
    poll_staleness: Histogram = field(default_factory=Histogram)
    stream_staleness: Histogram = field(default_factory=Histogram)
    lateness: Histogram = field(default_factory=Histogram)
    """By how much calls were sent later than planned: the load machine's own delay, which their times include."""
    causes: Counter[str] = field(default_factory=Counter)
    """Failures by operation, status and reason; bounded, as each of these is."""
    push_states: Counter[str] = field(default_factory=Counter)
    """Deliveries by the state they were last seen in."""

    def tally(self, operation: Operation) -> Tally:
        """Return the tally of an operation."""
        return self.tallies.setdefault(operation, Tally(times=Histogram()))
