"""A pool of worker processes that ends with its work, with a signal, and with the process that started it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from syncbeat_server.ops.parent_death_signal import end_with_parent

_SIGNAL_STATUS = 128
"""Exit status of a program ended by a signal, in a shell, minus the signal's number."""

_BLOCKED_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def process_pool(workers: int) -> Iterator[Executor]:
    """Start the worker processes. If the block ends early, by SIGTERM for example, they end too, without finishing.

    Where the system has no semaphores, as in containers whose /dev/shm cannot be written, the work is done in this
    process, and standard error says so. Enter it in the main thread, which alone may install signal handlers.
    """
    before = signal.signal(signal.SIGTERM, _exit_on_signal)
    try:
        executor = ProcessPoolExecutor(workers, initializer=_initialize_worker, initargs=(os.getpid(),))
    except (OSError, NotImplementedError, ImportError) as fault:
        # The last two are Python's own where it was built without them.
        reason = fault.strerror if isinstance(fault, OSError) and fault.strerror else str(fault)
        print(f"syncbeat-server: no semaphores here (/dev/shm: {reason}): simulating in one process", file=sys.stderr)
        try:
            yield _InlineExecutor()
        finally:
            signal.signal(signal.SIGTERM, before)
        return
    try:
        # A forked process has this one's signal handlers until it is initialized, so signals are blocked until then.
        signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED_SIGNALS)
        try:
            executor.submit(os.getpid)  # starts all of them
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _BLOCKED_SIGNALS)
        yield executor
    except BaseException:
        for child in multiprocessing.active_children():
            child.terminate()
        raise
    finally:
        executor.shutdown(cancel_futures=True)
        signal.signal(signal.SIGTERM, before)


class _InlineExecutor(Executor):
    """Runs each function at once, in the caller's thread."""

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        """Return the future of a call, which has ended."""
        future: Future[Any] = Future()
        try:
            future.set_result(function(*arguments, **named))
        except Exception as error:  # noqa: BLE001  # it is the caller's, as from a process
            future.set_exception(error)
        return future


def _exit_on_signal(number: int, _frame: FrameType | None) -> NoReturn:
    # A second signal ends this process at once, and the workers end with it.
    signal.signal(number, signal.SIG_DFL)
    raise SystemExit(_SIGNAL_STATUS + number)


def _initialize_worker(parent: int) -> None:
    """Ignore Ctrl-C, which reaches all processes of the terminal, in a worker: the parent handles it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _BLOCKED_SIGNALS)
    end_with_parent(parent, signal.SIGKILL)
