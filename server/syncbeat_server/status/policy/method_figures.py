"""Derives rates, errors and percentiles of a method's calls from two readings of its counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Protocol

from syncbeat_server.status.model import MethodStatus

OUR_FAULT = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})
"""The codes of calls that failed by our fault. RESOURCE_EXHAUSTED is none: most of it are callers over their limits."""


class Counts(Protocol):
    """Finished calls of one method since the start: by code, and by duration, with one bucket more than bounds."""

    @property
    def codes(self) -> Mapping[str, int]:
        """Return the calls by code."""
        ...

    @property
    def buckets(self) -> Sequence[int]:
        """Return the calls by duration."""
        ...

    @property
    def overloaded(self) -> int:
        """Return the calls that were refused under load."""
        ...

    @property
    def excused(self) -> int:
        """Return the calls whose code is that of a failure, and that their callers brought about."""
        ...


def quantile(bounds: Sequence[float], buckets: Sequence[float], share: float) -> float:
    """Return the time that this share of the calls took at most, interpolated within its bucket.

    Calls above the last bound count as that. 0 without calls.
    """
    total = sum(buckets)
    if not total:
        return 0.0
    rank = share * total
    for index, reached in enumerate(accumulate(buckets)):
        if reached >= rank and buckets[index]:
            if index == len(bounds):
                return bounds[-1]
            below = bounds[index - 1] if index else 0.0
            return below + (bounds[index] - below) * (rank - reached + buckets[index]) / buckets[index]
    return bounds[-1]


def method_figures(
    bounds: Sequence[float], before: Mapping[str, Counts], now: Mapping[str, Counts], window_s: float, most: int
) -> tuple[MethodStatus, ...]:
    """Return the methods with calls between the two readings, by name; the `most` most called."""
    found = [_figures(bounds, method, before.get(method), counts, window_s) for method, counts in now.items()]
    called = sorted((one for one in found if one.calls), key=lambda one: (-one.calls, one.method))[:most]
    return tuple(sorted(called, key=lambda one: one.method))


def _figures(bounds: Sequence[float], method: str, before: Counts | None, now: Counts, window_s: float) -> MethodStatus:
    earlier = (0,) * len(now.buckets) if before is None else before.buckets
    buckets = [count - known for count, known in zip(now.buckets, earlier, strict=True)]
    codes, excused = ({}, 0) if before is None else (before.codes, before.excused)
    calls = sum(buckets)
    failed = sum(count - codes.get(code, 0) for code, count in now.codes.items() if code in OUR_FAULT)
    return MethodStatus(
        method=method,
        calls=calls,
        errors=max(0, failed - (now.excused - excused)),
        rate=calls / window_s if window_s > 0 else 0.0,
        p50_s=quantile(bounds, buckets, 0.50),
        p95_s=quantile(bounds, buckets, 0.95),
        p99_s=quantile(bounds, buckets, 0.99),
    )
