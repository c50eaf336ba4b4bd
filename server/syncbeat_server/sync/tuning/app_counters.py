"""Counts the hints and the staleness of one app in one process.

Counters only grow, and are cheap, because each hint adds to them.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from typing import NamedTuple

from syncbeat_server.sync.policy.interval import Bounds
from syncbeat_server.sync.policy.price_state import Sums
from syncbeat_server.sync.policy.staleness import Staleness

STALENESS_S = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 900.0)
INTERVALS_S = (5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0, 14_400.0)
"""The upper bounds of the interval histogram's buckets, which include those of the tiers."""

_STRETCHED = 1.5  # times: more than pacing to a quieter moment adds
_KEPT = math.exp(-1 / 60)  # of the optimality's window, a minute later: it is about an hour long
_LEAST_CHANGES = 30.0


class _PollSums(NamedTuple):
    """Sums over devices that mostly poll.

    They are changes and stale seconds by attention, polls, and the integrals of the believed rate and of its root over
    the time between polls.
    """

    changes: float = 0.0
    stale_s: float = 0.0
    polls: float = 0.0
    rate_s: float = 0.0
    root_s: float = 0.0


class AppCounters:
    """Counts the measurements for the price, and those that the metrics show.

    `written` is the part of the sums that is in the app's row. `staleness` and `intervals` are histograms over
    `STALENESS_S` and `INTERVALS_S`. `capped` counts the polls whose interval was the longest allowed. `avoided` is the
    highest number of polls saved so far against fixed polling at the same target; `optimality` is of the last hour.
    """

    __slots__ = (
        "_changes",
        "_floored",
        "_last_sums",
        "_late",
        "_poll_changes",
        "_poll_polls",
        "_poll_stale_s",
        "_polls",
        "_rate_s",
        "_root_s",
        "_saved",
        "_served_polls",
        "_served_s",
        "_stale_s",
        "_window",
        "avoided",
        "capped",
        "interval_sum",
        "intervals",
        "optimality",
        "requests",
        "staleness",
        "staleness_sum",
        "written",
    )

    def __init__(self) -> None:
        self._changes = self._stale_s = self._late = 0.0
        self._polls = self.capped = self._floored = self.requests = 0
        self.staleness, self.staleness_sum = [0.0] * (len(STALENESS_S) + 1), 0.0
        self.intervals, self.interval_sum = [0] * (len(INTERVALS_S) + 1), 0.0
        self._served_s = self._saved = self.avoided = 0.0
        self._served_polls = self._poll_polls = 0
        self._poll_changes = self._poll_stale_s = self._rate_s = self._root_s = 0.0
        self.written = Sums()
        self.optimality: float | None = None
        self._last_sums, self._window = _PollSums(), _PollSums()

    def sums(self) -> Sums:
        """Return all sums for the price since the start."""
        return Sums(self._changes, self._stale_s, self._late, self._polls, self.capped, self._floored, self.requests)

    def count_hint(self, interval_s: float) -> None:
        """Count a hint and its interval."""
        self.requests += 1
        self.intervals[bisect_left(INTERVALS_S, interval_s)] += 1
        self.interval_sum += interval_s

    def count_bounded_poll(self, unpaced_s: float, paced_s: float, bounds: Bounds) -> None:
        """Count the poll of a device that polls, and that a person looks at, by its intervals before and after pacing.

        Where pacing stretches an interval under load, a higher price makes it no shorter: it counts as at the floor.
        """
        self._polls += 1
        if unpaced_s <= bounds.floor_s or paced_s > _STRETCHED * unpaced_s:
            self._floored += 1
        elif unpaced_s >= bounds.cap_s:
            self.capped += 1

    def count_served_poll(self, waited_s: float, rate_per_s: float, *, mostly_polled: bool) -> None:
        """Count a device that returned in time, while `rate_per_s` changes were expected, weighted by attention."""
        self._served_s += waited_s
        self._served_polls += 1
        if mostly_polled:
            self._poll_polls += 1
            self._rate_s += rate_per_s * waited_s
            self._root_s += math.sqrt(rate_per_s) * waited_s

    def count_stream_time(self, seconds: float) -> None:
        """Count seconds, of all devices together, in which a stream replaced polls."""
        self._served_s += seconds

    def count_staleness(
        self, staleness: Staleness, newest_s: float, oldest_s: float, attention: float, *, mostly_polled: bool
    ) -> None:
        """Count changes that a device received, from `newest_s` to `oldest_s` old."""
        changes, stale_s, late = staleness
        self._changes += attention * changes
        self._stale_s += attention * stale_s
        self._late += attention * late
        if mostly_polled:
            self._poll_changes += attention * changes
            self._poll_stale_s += attention * stale_s
        self.staleness_sum += stale_s
        self.staleness[bisect_left(STALENESS_S, newest_s)] += 1.0
        if changes > 1.0:
            self._spread(newest_s, oldest_s, changes - 1.0)

    def tick(self, fixed_interval_s: float) -> None:
        """Update `optimality` and `avoided` once a minute.

        `fixed_interval_s` is the interval with which fixed polling would meet the target.
        """
        self._saved += self._served_s / fixed_interval_s - self._served_polls
        self._served_s, self._served_polls = 0.0, 0
        self.avoided = max(self.avoided, self._saved)
        now = _PollSums(self._poll_changes, self._poll_stale_s, self._poll_polls, self._rate_s, self._root_s)
        moved = zip(self._window, now, self._last_sums, strict=True)
        self._window, self._last_sums = _PollSums(*[_KEPT * old + new - last for old, new, last in moved]), now
        self.optimality = _optimality(self._window)

    def _spread(self, newest_s: float, oldest_s: float, changes: float) -> None:
        """Add changes evenly over a span of ages to the histogram."""
        first, span_s, at = bisect_left(STALENESS_S, newest_s), oldest_s - newest_s, newest_s
        if span_s <= 0.0:
            self.staleness[first] += changes
            return
        for index in range(first, len(self.staleness)):
            until = min(oldest_s, STALENESS_S[index]) if index < len(STALENESS_S) else oldest_s
            self.staleness[index] += changes * (until - at) / span_s
            at = until


def _optimality(sums: _PollSums) -> float | None:
    """Return the fewest polls that give this mean staleness at the believed rates r, over the polls there were.

    Polls that are spread by the square-root law are (integral of sqrt r)^2 / (2 S integral of r). None for too few
    changes.
    """
    if sums.changes < _LEAST_CHANGES or sums.stale_s <= 0.0 or sums.rate_s <= 0.0 or sums.polls <= 0.0:
        return None
    mean_s = sums.stale_s / sums.changes
    return sums.root_s**2 / (2.0 * mean_s * sums.rate_s) / sums.polls
