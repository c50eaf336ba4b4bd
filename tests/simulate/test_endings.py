"""Tests how `simulate` ends before its work is done: nothing of it stays, and nothing is told at length."""

from __future__ import annotations

import json
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


# As in a container whose /dev/shm cannot be written: sem_open answers EACCES.
WITHOUT_SEMAPHORES = """
import _multiprocessing, errno, multiprocessing.synchronize, os, sys

class Refused(_multiprocessing.SemLock):
    def __new__(cls, *arguments):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

_multiprocessing.SemLock = Refused
from syncbeat_server.cli.main import main
sys.exit(main())
"""


def test_simulate_without_semaphores_runs_in_one_process_and_says_so() -> None:
    options = ["simulate", "--devices", "3", "--seed", "11", "--json"]
    done, usual = (
        subprocess.run([sys.executable, *program, *options], capture_output=True, text=True, timeout=100, check=False)
        for program in (("-c", WITHOUT_SEMAPHORES), ("-m", "syncbeat_server.cli"))
    )
    told = "syncbeat-server: no semaphores here (/dev/shm: Permission denied): simulating in one process\n"
    assert (done.returncode, done.stderr, usual.stderr) == (0, told, "")
    assert {**json.loads(done.stdout), "seconds": 0} == {**json.loads(usual.stdout), "seconds": 0}
