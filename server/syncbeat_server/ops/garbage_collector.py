"""Lets Python's cyclic garbage collector run rarely in a serving process, and spare what exists at start (ADR 115)."""

from __future__ import annotations

import gc

_THRESHOLDS = 50_000, 20, 100
"""Thresholds of the cyclic collector. With Python's own (700, 10, 10) it walks again and again through the tens of
thousands of containers that streams and cached views are, which are hardly ever in cycles."""


def spare_started_process() -> None:
    """Collect once, leave the objects that are left alone for good, and raise the thresholds. Call it after start."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
