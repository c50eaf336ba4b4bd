"""Threads share the few heaps that a process of the service has."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from syncbeat_server.ops.malloc_arenas import MALLOC_ARENAS

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc has arenas"),
]

THREADS = 12
# Each thread that allocates gets an arena of its own as long as there may be more; malloc_info(3) lists them.
PROGRAM = f"""
import ctypes, sys, threading
from syncbeat_server.ops.malloc_arenas import limit_malloc_arenas

if sys.argv[1] == "limited":
    limit_malloc_arenas()
libc, all_allocated = ctypes.CDLL(None), threading.Barrier({THREADS})
libc.malloc.restype = ctypes.c_void_p

def allocate():
    libc.malloc(100)
    all_allocated.wait()

threads = [threading.Thread(target=allocate) for _ in range({THREADS})]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
stdout = ctypes.c_void_p.in_dll(libc, "stdout")
libc.malloc_info(0, stdout)
libc.fflush(stdout)
"""


def arenas_of(mode: str, **variables: str) -> int:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", PROGRAM, mode]
    done = subprocess.run(command, env={**environment, **variables}, capture_output=True, timeout=60, check=True)
    return done.stdout.count(b"<heap nr=")


def test_malloc_arenas_are_few_whatever_the_number_of_threads() -> None:
    assert arenas_of("default") > MALLOC_ARENAS
    assert arenas_of("limited") == MALLOC_ARENAS


def test_malloc_arenas_of_the_environment_are_kept() -> None:
    assert arenas_of("limited", MALLOC_ARENA_MAX="4") == 4
