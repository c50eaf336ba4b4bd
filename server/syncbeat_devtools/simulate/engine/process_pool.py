"""How the processes of a simulation end: with their work, with a signal, and with the process that started them."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from syncbeat_server.ops.child_process import end_with_parent

_BY_SIGNAL = 128
"""A shell's exit status of a program that a signal ended, less the signal's number."""

_HELD_BACK = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def ending_executor(workers: int) -> Iterator[Executor]:
    """So many processes. What ends the block early, SIGTERM among it, ends them too, without their work.

    To be entered by the main thread, which alone may set what a signal does; the processes start from it.
    """
    before = signal.signal(signal.SIGTERM, _terminated)
    executor = ProcessPoolExecutor(workers, initializer=_obey, initargs=(os.getpid(),))
    try:
        # A process is a copy of this one until it obeys: what comes before that waits for it.
        signal.pthread_sigmask(signal.SIG_BLOCK, _HELD_BACK)
        try:
            executor.submit(os.getpid)  # starts all of them
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD_BACK)
        yield executor
    except BaseException:
        for child in multiprocessing.active_children():
            child.terminate()
        raise
    finally:
        executor.shutdown(cancel_futures=True)
        signal.signal(signal.SIGTERM, before)


def _terminated(number: int, _frame: FrameType | None) -> NoReturn:
    # A second one does not wait for anything: the processes then end with this one.
    signal.signal(number, signal.SIG_DFL)
    raise SystemExit(_BY_SIGNAL + number)


def _obey(parent: int) -> None:
    """In each process: Ctrl-C reaches all of the terminal's processes, and the parent answers for them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD_BACK)
    end_with_parent(parent, signal.SIGKILL)
