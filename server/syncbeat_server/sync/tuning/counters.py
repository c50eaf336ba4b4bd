"""The counts of one app in one process. They only grow, and are cheap: they are on the path of each hint."""

from __future__ import annotations

import math
from bisect import bisect_left
from typing import NamedTuple

from syncbeat_server.sync.policy.interval import Bounds
from syncbeat_server.sync.policy.price_state import Sums
from syncbeat_server.sync.policy.staleness import Met

STALENESS_S = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 900.0)
INTERVALS_S = (5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0, 14_400.0)
"""The upper bounds of the histograms' buckets; those of intervals include the tiers'."""

_STRETCHED = 1.5  # times: more than what moves a poll to a quieter moment
_KEPT = math.exp(-1 / 60)  # of the optimality's window, a minute later: it is about an hour long
_LEAST_CHANGES = 30.0


class _Pull(NamedTuple):
    """Of devices that mostly poll: changes and stale seconds by attention, polls, and the integrals of the believed
    rate and of its root over the time between them."""

    changes: float = 0.0
    stale_s: float = 0.0
    polls: float = 0.0
    rate_s: float = 0.0
    root_s: float = 0.0


class Tally:
    """What is measured for the price (`taken`: so much of it is in the app's row), and what the metrics show.

    `staleness` and `intervals` are histograms over `STALENESS_S` and `INTERVALS_S`. `avoided` are the polls less than
    fixed polling at the same target would have sent, at their highest; `optimality` is that of the last hour.
    """

    __slots__ = (
        "_capped",
        "_changes",
        "_floored",
        "_late",
        "_polls",
        "_pull_changes",
        "_pull_polls",
        "_pull_stale_s",
        "_rate_s",
        "_root_s",
        "_served_polls",
        "_served_s",
        "_stale_s",
        "_ticked",
        "_window",
        "_would_be",
        "avoided",
        "interval_sum",
        "intervals",
        "optimality",
        "requests",
        "staleness",
        "staleness_sum",
        "taken",
    )

    def __init__(self) -> None:
        self._changes = self._stale_s = self._late = 0.0
        self._polls = self._capped = self._floored = self.requests = 0
        self.staleness, self.staleness_sum = [0.0] * (len(STALENESS_S) + 1), 0.0
        self.intervals, self.interval_sum = [0] * (len(INTERVALS_S) + 1), 0.0
        self._served_s = self._would_be = self.avoided = 0.0
        self._served_polls = self._pull_polls = 0
        self._pull_changes = self._pull_stale_s = self._rate_s = self._root_s = 0.0
        self.taken = Sums()
        self.optimality: float | None = None
        self._ticked, self._window = _Pull(), _Pull()

    def sums(self) -> Sums:
        """Everything measured so far."""
        return Sums(self._changes, self._stale_s, self._late, self._polls, self._capped, self._floored, self.requests)

    def told(self, interval_s: float) -> None:
        """A device asked, and was told to wait."""
        self.requests += 1
        self.intervals[bisect_left(INTERVALS_S, interval_s)] += 1
        self.interval_sum += interval_s

    def bounded(self, wanted_s: float, told_s: float, bounds: Bounds) -> None:
        """The interval of a device that polls, and that somebody looks at, before pacing and after it.

        Where pacing stretches it under load, a higher price makes it no shorter: as good as at the floor.
        """
        self._polls += 1
        if wanted_s <= bounds.floor_s or told_s > _STRETCHED * wanted_s:
            self._floored += 1
        elif wanted_s >= bounds.cap_s:
            self._capped += 1

    def served(self, waited_s: float, rate_per_s: float, *, mostly_polled: bool) -> None:
        """A device came again when it was told to, where `rate_per_s` changes were expected, weighed by attention."""
        self._served_s += waited_s
        self._served_polls += 1
        if mostly_polled:
            self._pull_polls += 1
            self._rate_s += rate_per_s * waited_s
            self._root_s += math.sqrt(rate_per_s) * waited_s

    def streamed(self, seconds: float) -> None:
        """So many seconds, of all devices together, a stream stood in for polls."""
        self._served_s += seconds

    def showed(self, met: Met, newest_s: float, oldest_s: float, attention: float, *, mostly_polled: bool) -> None:
        """A device heard of changes that are from `newest_s` to `oldest_s` old."""
        changes, stale_s, late = met
        self._changes += attention * changes
        self._stale_s += attention * stale_s
        self._late += attention * late
        if mostly_polled:
            self._pull_changes += attention * changes
            self._pull_stale_s += attention * stale_s
        self.staleness_sum += stale_s
        self.staleness[bisect_left(STALENESS_S, newest_s)] += 1.0
        if changes > 1.0:
            self._spread(newest_s, oldest_s, changes - 1.0)

    def tick(self, fixed_interval_s: float) -> None:
        """Once a minute: reckon how good polls are, and what polling at a fixed interval would have asked meanwhile."""
        self._would_be += self._served_s / fixed_interval_s - self._served_polls
        self._served_s, self._served_polls = 0.0, 0
        self.avoided = max(self.avoided, self._would_be)
        now = _Pull(self._pull_changes, self._pull_stale_s, self._pull_polls, self._rate_s, self._root_s)
        moved = zip(self._window, now, self._ticked, strict=True)
        self._window, self._ticked = _Pull(*[_KEPT * old + new - last for old, new, last in moved]), now
        self.optimality = _optimality(self._window)

    def _spread(self, newest_s: float, oldest_s: float, changes: float) -> None:
        """Put changes evenly over a span of ages."""
        first, span_s, at = bisect_left(STALENESS_S, newest_s), oldest_s - newest_s, newest_s
        if span_s <= 0.0:
            self.staleness[first] += changes
            return
        for index in range(first, len(self.staleness)):
            until = min(oldest_s, STALENESS_S[index]) if index < len(STALENESS_S) else oldest_s
            self.staleness[index] += changes * (until - at) / span_s
            at = until


def _optimality(pull: _Pull) -> float | None:
    """The fewest polls that give this mean staleness at the believed rates r, over the polls there were.

    Polls that are spread by the square-root law are (integral of sqrt r)^2 / (2 S integral of r).
    """
    if pull.changes < _LEAST_CHANGES or pull.stale_s <= 0.0 or pull.rate_s <= 0.0 or pull.polls <= 0.0:
        return None
    mean_s = pull.stale_s / pull.changes
    return pull.root_s**2 / (2.0 * mean_s * pull.rate_s) / pull.polls
