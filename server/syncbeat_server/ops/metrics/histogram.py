"""Formats histograms that are counted by hand."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate


def cumulative_buckets(bounds: Sequence[float], counts: Sequence[float]) -> list[tuple[str, float]]:
    """Return the cumulative counts by upper bound, as Prometheus wants them; `counts` has one more, for +Inf."""
    return list(zip((*map(str, bounds), "+Inf"), accumulate(counts), strict=True))
