"""Keeps the memory of a process from growing with the number of its threads."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

MALLOC_ARENAS = 2
"""The heaps that glibc's malloc divides a process into; 8 for each core by default (ADR 118)."""
_M_ARENA_MAX = -8  # of mallopt(3)


def limit_malloc_arenas() -> None:
    """Let all threads share two heaps, unless MALLOC_ARENA_MAX says otherwise. To be called before threads start.

    Each of grpc-core's threads would have its own, and keep there what others freed in no order. Other C libraries than
    glibc have no such heaps.
    """
    if "MALLOC_ARENA_MAX" not in os.environ:
        with suppress(AttributeError):
            ctypes.CDLL(None).mallopt(_M_ARENA_MAX, MALLOC_ARENAS)
