"""Reads how much memory this process may use, and how many cached devices fit into a part of it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

BYTES_PER_DEVICE = 6 * 1024
"""Memory of one active device: its view, its checked token and its account status (5.3 KiB measured, and a margin)."""
_CONTAINER_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_SHARE = 4  # of the memory, the rest is for streams, requests and the interpreter
_LEAST_MIB, _MOST_MIB = 64, 1024


def memory_limit_bytes(container_limits: Iterable[Path] = _CONTAINER_LIMITS) -> int:
    """Return the memory of the machine, or of the container if one of the files says less."""
    limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in container_limits:
        try:
            limit = min(limit, int(path.read_text()))
        except (OSError, ValueError):  # no such file here, or "max"
            continue
    return limit


def default_cache_mib(limit_bytes: int, processes: int) -> int:
    """Return the MiB that the caches of each of so many processes may take."""
    return min(_MOST_MIB, max(_LEAST_MIB, limit_bytes // _SHARE // processes >> 20))


def devices_in(mib: int) -> int:
    """Return how many devices' views and tokens fit into so many MiB."""
    return (mib << 20) // BYTES_PER_DEVICE
