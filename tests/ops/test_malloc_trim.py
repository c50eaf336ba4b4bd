"""Memory that malloc holds free between allocations is returned to the system."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has malloc_trim"),
]

# All blocks but the last are freed, which keeps the heap's end and with it everything below.
PROGRAM = """
import asyncio, ctypes, psutil, sys
from syncbeat_server.clock import SystemClock
from syncbeat_server.ops.malloc_trim import trim_heaps

clock, me = SystemClock(), psutil.Process()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]

async def main():
    task = asyncio.create_task(trim_heaps(clock, 0.01)) if sys.argv[1] == "trimmed" else None
    await clock.sleep(0.05)
    blocks = [libc.malloc(1000) for _ in range(64 * 1024)]
    full = me.memory_info().rss
    for block in blocks[:-1]:
        libc.free(block)
    kept, deadline = me.memory_info().rss, clock.monotonic() + 10
    while task and me.memory_info().rss > full - 50 * 2**20 and clock.monotonic() < deadline:
        await clock.sleep(0.01)
    print(full - kept, full - me.memory_info().rss)
    if task:
        task.cancel()

asyncio.run(main())
"""


def returned_octets(mode: str) -> list[int]:
    done = subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, timeout=60, check=True, text=True)
    return [int(octets) for octets in done.stdout.split()]


def test_malloc_trim_returns_free_memory_to_the_system() -> None:
    by_free, by_trim = returned_octets("trimmed")

    assert by_free < 10 * 2**20
    assert by_trim > 50 * 2**20


def test_malloc_keeps_free_memory_without_a_trim() -> None:
    assert returned_octets("kept")[1] < 10 * 2**20
