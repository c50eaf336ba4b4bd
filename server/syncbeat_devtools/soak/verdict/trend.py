"""Fits a line through figures over time, robust against outliers. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import combinations


def slope(samples: Sequence[tuple[float, float]]) -> float | None:
    """Return the median of the slopes between all pairs of samples (Theil-Sen); None of fewer than three.

    A garbage collection, or a restart, moves it less than it moves a fit by least squares.
    """
    if len(samples) < 3:
        return None
    slopes = [(y - b) / (x - a) for (a, b), (x, y) in combinations(samples, 2) if x != a]
    return statistics.median(slopes) if slopes else None
