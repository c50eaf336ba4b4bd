"""Returns free memory that malloc keeps in its heaps to the operating system, after bursts."""

from __future__ import annotations

import asyncio
import ctypes
import os
from pathlib import Path

from syncbeat_server.clock import Clock

_LOOK_EVERY_S = 10.0
_GROWTH = 1.06
"""Growth of the resident memory that a trim follows. It stops the loop for some milliseconds, 100 ms if 300 MiB are
free in small pieces, so a process whose memory stays as it is has none."""


async def trim_heaps(clock: Clock, every_s: float = _LOOK_EVERY_S) -> None:
    """Trim malloc's heaps whenever the process has grown, until cancelled (ADR 131).

    Calls are received, served and freed by different threads of grpc-core, each with a heap of its own, so that a burst
    leaves these full of pages with nothing on them, while malloc returns only the end of a heap. Returns at once with a
    C library other than glibc.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim  # releases Python's lock while it runs
    except AttributeError:
        return
    after_trim = _resident_octets()
    while True:
        await clock.sleep(every_s)
        if _resident_octets() > after_trim * _GROWTH:
            await asyncio.to_thread(trim, 0)
            after_trim = _resident_octets()


def _resident_octets() -> int:
    """Return the octets of this process in memory, by /proc, which every system with glibc's malloc_trim has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
