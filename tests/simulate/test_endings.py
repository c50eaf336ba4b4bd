"""Tests how `simulate` ends before its work is done: nothing of it stays, and nothing is told at length."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

pytestmark = pytest.mark.process

# Work that outlasts every wait of the test; it prints the processes that do it, once they are there.
PROGRAM = """
import multiprocessing, os, signal, sys, time
from syncbeat_devtools.simulate.engine.process_pool import process_pool

signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    with process_pool(2) as executor:
        executor.submit(os.getpid).result()
        futures = [executor.submit(time.sleep, 60) for _ in range(9)]
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        futures[0].result()
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize(
    ("number", "whole_group", "status"),
    [
        (signal.SIGTERM, False, 128 + signal.SIGTERM),
        (signal.SIGINT, True, 130),
        (signal.SIGINT, False, 130),
        (signal.SIGKILL, False, -signal.SIGKILL),
    ],
)
def test_simulate_signal_ends_all_processes_quietly(number: signal.Signals, whole_group: bool, status: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as program:
        assert program.stdout is not None
        workers = [int(word) for word in program.stdout.readline().split()]
        assert len(workers) == 2
        (os.killpg if whole_group else os.kill)(program.pid, number)
        try:
            # Until the last process that holds the pipes has ended, the workers among them.
            _, said = program.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(program.pid, signal.SIGKILL)
            raise
    assert program.returncode == status
    assert not said
