"""Says over which spans of time objectives are judged, and in which buckets counts are kept for them. Pure.

The pairs of windows are those of Google's "The Site Reliability Workbook", chapter 5, "Alerting on SLOs", section
"Multiwindow, Multi-Burn-Rate Alerts": a budget of 30 days burns 14.4 times faster than it lasts over 1 h (2 % of it),
6 times over 6 h (5 %), or just as fast over 3 days (10 %), and a window of a twelfth of that shows that it still does.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from syncbeat_server.status.model import Amounts, Sums

_MINUTE_S, _HOUR_S, _DAY_S = 60.0, 3_600.0, 86_400.0
_LONGEST_TICK_S = 10.0


class Span(StrEnum):
    """Names the windows, by what they are long unless they are scaled."""

    FIVE_MINUTES = "5m"
    HALF_HOUR = "30m"
    HOUR = "1h"
    SIX_HOURS = "6h"
    THREE_DAYS = "3d"
    BUDGET = "30d"


_SECONDS = {
    Span.FIVE_MINUTES: 5 * _MINUTE_S,
    Span.HALF_HOUR: 30 * _MINUTE_S,
    Span.HOUR: _HOUR_S,
    Span.SIX_HOURS: 6 * _HOUR_S,
    Span.THREE_DAYS: 3 * _DAY_S,
    Span.BUDGET: 30 * _DAY_S,
}


@dataclass(frozen=True)
class BurnPair:
    """Two windows over both of which a budget must burn faster than `factor`; `pages`: it comes to ROLLBACK."""

    name: str
    factor: float
    long: Span
    short: Span
    pages: bool


BURN_PAIRS = (
    BurnPair("fast_burn", 14.4, Span.HOUR, Span.FIVE_MINUTES, pages=True),
    BurnPair("medium_burn", 6.0, Span.SIX_HOURS, Span.HALF_HOUR, pages=True),
    BurnPair("slow_burn", 1.0, Span.THREE_DAYS, Span.SIX_HOURS, pages=False),
)


@dataclass(frozen=True)
class Window:
    """A span that ends now, of buckets of `width_s`: the oldest bucket that it touches counts whole."""

    seconds: float
    width_s: int

    def holds(self, age_s: float) -> bool:
        """Return True if counts of `age_s` ago belong to it."""
        return age_s < self.seconds + self.width_s


@dataclass(frozen=True)
class SloTimes:
    """Spans and buckets, all `scale` times as long as in production: 1 there, less in tests and soaks."""

    scale: float = 1.0

    @property
    def short_s(self) -> int:
        """Return the width of short buckets: a minute, and a second at least."""
        return max(1, round(_MINUTE_S * self.scale))

    @property
    def long_s(self) -> int:
        """Return the width of long buckets: an hour, and that of short ones at least."""
        return max(self.short_s, round(_HOUR_S * self.scale))

    @property
    def tick_s(self) -> float:
        """Return the seconds between two writes of a process, which loses the counts of as many when it is killed."""
        return min(_LONGEST_TICK_S, float(self.short_s))

    @property
    def kept_s(self) -> tuple[tuple[int, float], ...]:
        """Return the widths of the buckets, and for how many seconds from its start each is kept."""
        return (
            (self.short_s, self.seconds(Span.SIX_HOURS) * 4 / 3 + 2 * self.short_s),
            (self.long_s, self.seconds(Span.BUDGET) * 31 / 30 + 2 * self.long_s),
        )

    def seconds(self, span: Span) -> float:
        """Return how long a span is."""
        return _SECONDS[span] * self.scale

    def window(self, span: Span) -> Window:
        """Return the window of a span."""
        return self.window_of(self.seconds(span))

    def window_of(self, seconds: float) -> Window:
        """Return a window of so many seconds, in the buckets that reach so far back."""
        return Window(seconds, self.short_s if seconds <= self.seconds(Span.SIX_HOURS) else self.long_s)


def difference(before: Sums, now: Sums) -> dict[str, Amounts]:
    """Return by how much counters grew, without those that did not. One that fell counts as one that stands still."""
    grown = {}
    for series, amounts in now.items():
        earlier = before.get(series, ())
        earlier += (0.0,) * (len(amounts) - len(earlier))
        growth = tuple(max(0.0, amount - known) for amount, known in zip(amounts, earlier, strict=False))
        if any(growth):
            grown[series] = growth
    return grown


def total(one: Sums, other: Sums) -> dict[str, Amounts]:
    """Return the sum of two sets of counts."""
    return {series: _added(one.get(series, ()), other.get(series, ())) for series in (*one, *(other.keys() - one))}


def _added(one: Amounts, other: Amounts) -> Amounts:
    longer, shorter = (one, other) if len(one) >= len(other) else (other, one)
    return tuple(amount + (shorter[i] if i < len(shorter) else 0.0) for i, amount in enumerate(longer))
