"""The end of a process: everything on the way out shares one budget, and what hangs beyond it is left behind (ADR 77).

A database that is stopped, or cut off, still takes connections: cancelling a statement, rolling back and closing each
wait for it in turn. Nothing is lost by ending without them: what was accepted is committed, leases run out.
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

# What is left after draining for giving back leases and closing; then the process ends as it is. An orchestrator is
# promised two seconds.
_CLOSING_S = 1.5
_STATUS_CUT_SHORT = 1


class Ending:
    """How much of the time to drain is left."""

    def __init__(self, drain_s: float) -> None:
        self._drain_s = drain_s
        self._began: float | None = None

    def begin(self) -> None:
        """The process is to end; the first time counts."""
        if self._began is None:
            self._began = asyncio.get_running_loop().time()

    def left_s(self) -> float:
        """Seconds until draining is over."""
        if self._began is None:
            return self._drain_s
        return max(0.0, self._began + self._drain_s - asyncio.get_running_loop().time())

    async def within(self, work: Awaitable[object], grace_s: float) -> bool:
        """Wait for `work` until `grace_s` after draining is over; whether it ended. It is not waited for any longer,
        not even until it is cancelled. Raises what it raises.
        """
        task = asyncio.ensure_future(work)
        await asyncio.wait([task], timeout=self.left_s() + grace_s)
        if task.done():
            task.result()
            return True
        task.cancel()
        return False


def heed_signals(stop: asyncio.Event, drain_s: float | None) -> None:
    """Let SIGTERM and SIGINT set `stop`. With `drain_s` the process then ends soon after so many seconds, whatever
    hangs.
    """

    def told() -> None:
        if drain_s is not None and not stop.is_set():
            _end_within(drain_s)
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told)


@contextmanager
def given_up(stop: asyncio.Event) -> Iterator[Callable[[], None]]:
    """Cancel the block when `stop` is set before the block calls what it is given: it starts something, and hangs.

    A block that was cancelled for that ends as if it were over.
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


def _end_within(drain_s: float) -> None:
    # A thread, since what hangs may be the loop, or the threads that the loop waits for at its end.
    timer = threading.Timer(drain_s + _CLOSING_S, _end)
    timer.daemon = True
    timer.start()


def _end() -> None:
    _log.warning("ended without waiting for what still hangs")
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            continue
    os._exit(_STATUS_CUT_SHORT)
