"""Bounds the end of a process: all steps of a shutdown share one budget, and a step that hangs beyond it is abandoned.

A database that is stopped, or cut off, still takes connections: cancelling a statement, rolling back and closing each
wait for it in turn. Ending without them loses nothing: accepted calls are committed, leases run out.

See ADR 77.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

_log = logging.getLogger(__name__)

# The time after draining for releasing leases and closing; then the process ends as it is. Orchestrators are promised
# two seconds.
_CLOSING_S = 1.5
CANCEL_AGAIN_S = 0.2
"""The seconds after which a task that outlived its cancellation is cancelled again."""
_STATUS_CUT_SHORT = 1


class ShutdownBudget:
    """Measures the time that is left for draining."""

    def __init__(self, drain_s: float) -> None:
        self._drain_s = drain_s
        self._began: float | None = None

    def start(self) -> None:
        """Start the time; only the first call does."""
        if self._began is None:
            self._began = asyncio.get_running_loop().time()

    def remaining_s(self) -> float:
        """Return the seconds until draining must be over; all of them before `start`."""
        if self._began is None:
            return self._drain_s
        return max(0.0, self._began + self._drain_s - asyncio.get_running_loop().time())

    async def wait_for(self, work: Awaitable[object], grace_s: float) -> bool:
        """Wait for `work` until `grace_s` seconds after draining must be over; return True if it ended.

        Work that did not end is cancelled without waiting for that. Raises whatever the work raises.
        """
        task = asyncio.ensure_future(work)
        await asyncio.wait([task], timeout=self.remaining_s() + grace_s)
        if task.done():
            task.result()
            return True
        task.cancel()
        return False


def stop_on_signals(stop: asyncio.Event, drain_s: float | None) -> None:
    """Set `stop` on SIGTERM and SIGINT; with `drain_s`, end the process soon after so many seconds, whatever hangs."""

    def on_signal() -> None:
        if drain_s is not None and not stop.is_set():
            _exit_after(drain_s)
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)


@contextmanager
def cancelled_on_stop(stop: asyncio.Event) -> Iterator[Callable[[], None]]:
    """Cancel the block if `stop` is set before the block calls the yielded function: its start hangs, say.

    The block then ends without an error.
    """
    task = asyncio.current_task()
    if task is None:
        raise AssertionError("only tasks run blocks")

    async def cancel() -> None:
        await stop.wait()
        task.cancel()

    watching = asyncio.ensure_future(cancel())

    def started() -> None:
        watching.cancel()

    try:
        yield started
    except asyncio.CancelledError:
        if not watching.done() or watching.cancelled():
            raise
        task.uncancel()
    finally:
        watching.cancel()


def _exit_after(drain_s: float) -> None:
    # A thread, since the loop itself may hang, or the threads that it waits for at its end.
    timer = threading.Timer(drain_s + _CLOSING_S, _exit_now)
    timer.daemon = True
    timer.start()


def _exit_now() -> None:
    _log.warning("ended without waiting for what still hangs")
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            continue
    os._exit(_STATUS_CUT_SHORT)
