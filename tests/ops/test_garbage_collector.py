"""Cyclic garbage of a serving process is bounded, and what lives long is hardly ever walked through."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.process  # the collector's state is the whole process's

PROGRAM = """
import gc
from syncbeat_server.ops.garbage_collector import spare_started_process

class Cycle:
    alive = most = 0

    def __init__(self):
        self.itself = self
        Cycle.alive += 1
        Cycle.most = max(Cycle.most, Cycle.alive)

    def __del__(self):
        Cycle.alive -= 1

spare_started_process()
full = gc.get_stats()[2]["collections"]
for _ in range(300_000):
    Cycle()
print(Cycle.most, gc.get_stats()[2]["collections"] - full)
"""


def test_cyclic_garbage_is_bounded_without_full_collections() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, timeout=60, check=True, text=True)
    most_waiting, full_collections = map(int, done.stdout.split())

    assert most_waiting <= 6_000  # a cycle of six containers for each call: 1.6 MiB
    assert full_collections == 0
