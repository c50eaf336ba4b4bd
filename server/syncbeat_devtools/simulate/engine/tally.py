"""Counts of a simulated day, and the statistics computed from them."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field

MINUTES = 1440
AWAKE_S = 15.0
"""Seconds that a radio stays on after traffic, within which further traffic causes no wake-up of the device."""

# Bytes on the wire including HTTP/2 and TLS: a poll without changes, one with changes (the users' own figure for a
# sync), a wake-up, opening a stream, and the pings of a minute of stream.
EMPTY_POLL_BYTES, FETCH_BYTES, PUSH_BYTES, STREAM_OPEN_BYTES, STREAM_MINUTE_BYTES = 400, 2048, 300, 1500, 60


@dataclass(slots=True)
class Tally:
    """Counts of a day of some devices. Staleness is measured per change, from its commit until its device has it."""

    devices: int = 0
    polls: int = 0
    safety_polls: int = 0
    fetches: int = 0
    stream_messages: int = 0
    stream_opens: int = 0
    pushes: int = 0
    resends: int = 0
    needless_resends: int = 0
    woken: int = 0
    lost: int = 0
    tried: int = 0
    missed: int = 0
    """Counts over devices believed to be reachable: `woken` wake-ups that ended, of which `lost` were never answered in
    spite of all resends; and `tried` single pushes, of which `missed` were not answered in time.
    """
    capped: int = 0
    """Polls that came since the longest interval had passed (counted in logs)."""
    wakeups: int = 0
    traffic_bytes: int = 0
    delays: array[float] = field(default_factory=lambda: array("d"))
    stale_s: float = 0.0
    """Expected stale seconds given the true rates and the polls: the same mean as that of `delays`, with less noise."""
    expected: float = 0.0
    """Expected changes, likewise."""
    predictions: int = 0
    predicted_changes: float = 0.0
    predicted_stale_s: float = 0.0
    """Sums of the policy's own expectations for the interval after each poll."""
    log_error_squares: float = 0.0
    """Sum of the squares of ln(estimated rate / true rate) over all polls."""
    minutes: array[int] = field(default_factory=lambda: array("L", bytes(8 * MINUTES)))

    def request(self, at: float) -> None:
        """Count a request that reached the server at this second of the day."""
        self.minutes[min(MINUTES - 1, int(at / 60.0))] += 1

    @property
    def requests(self) -> int:
        """Return all requests. A message of a stream counts as one, because it costs as much."""
        return self.polls + self.safety_polls + self.fetches + self.stream_messages + self.stream_opens

    @property
    def mean_s(self) -> float:
        """Return the mean staleness: by the true rates if they are known, else of the changes themselves."""
        if self.expected > 0.0:
            return self.stale_s / self.expected
        return self.empirical_mean_s

    @property
    def empirical_mean_s(self) -> float:
        """Return the mean of the delays."""
        return math.fsum(self.delays) / len(self.delays) if self.delays else 0.0

    def quantiles_s(self, *shares: float) -> tuple[float, ...]:
        """Return quantiles of the staleness."""
        ordered = sorted(self.delays)
        if not ordered:
            return tuple(0.0 for _ in shares)
        return tuple(ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in shares)

    @property
    def peak_over_mean(self) -> float:
        """Return the busiest minute of the day over the mean minute."""
        return max(self.minutes) * MINUTES / max(1, sum(self.minutes))

    def per_day(self, count: float, fleet: int) -> float:
        """Scale a count of this sample to the whole fleet."""
        return count * fleet / self.devices

    def add(self, other: Tally) -> None:
        """Add another tally's counts."""
        self.devices += other.devices
        self.polls += other.polls
        self.safety_polls += other.safety_polls
        self.fetches += other.fetches
        self.stream_messages += other.stream_messages
        self.stream_opens += other.stream_opens
        self.pushes += other.pushes
        self.resends += other.resends
        self.needless_resends += other.needless_resends
        self.woken += other.woken
        self.lost += other.lost
        self.tried += other.tried
        self.missed += other.missed
        self.capped += other.capped
        self.wakeups += other.wakeups
        self.traffic_bytes += other.traffic_bytes
        self.delays.extend(other.delays)
        self.stale_s += other.stale_s
        self.expected += other.expected
        self.predictions += other.predictions
        self.predicted_changes += other.predicted_changes
        self.predicted_stale_s += other.predicted_stale_s
        self.log_error_squares += other.log_error_squares
        for minute, count in enumerate(other.minutes):
            self.minutes[minute] += count


def sum_tallies(tallies: Iterable[Tally]) -> Tally:
    """Return the sum of all tallies."""
    total = Tally()
    for tally in tallies:
        total.add(tally)
    return total


# Two-sided 95 % points of Student's t by degrees of freedom.
_T95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)


def half_width(values: Iterable[float]) -> float | None:
    """Return half of the 95 % confidence interval of the mean of independent values; None for fewer than two."""
    kept = list(values)
    free = len(kept) - 1
    if free < 1:
        return None
    mean = math.fsum(kept) / len(kept)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in kept) / free)
    return (_T95[free - 1] if free <= len(_T95) else 2.0) * deviation / math.sqrt(len(kept))
