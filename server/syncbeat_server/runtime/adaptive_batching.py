"""Decides when waiting calls are served as one batch.

A lone call does not wait. If recent batches held several calls, more are on their way: then a batch collects for as
long as each turn of the loop brings in calls. So a lone call pays nothing, and batches grow with the load.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sized
from contextvars import Context

# A batch is served after so many turns of the loop without a new call, or after so many seconds: an idle turn takes
# microseconds, but one in which the process does other work may take milliseconds.
# Measured with 64 calls under way: batches of 2 without these two, of 40 with them.
_QUIET_TURNS = 20
LONGEST_WAIT_S = 0.01
_LONE_BATCHES = 8  # so many batches of one call in a row mean that there is no load any more


class BatchTrigger:
    """Calls `serve` when a batch is due, checking once a turn of the loop. Runs in an empty context, not a caller's."""

    def __init__(
        self,
        waiting: Sized,
        most: int,
        serve: Callable[[], None],
        longest_wait_s: float = LONGEST_WAIT_S,
    ) -> None:
        """`waiting` holds the calls that wait; a batch is due when there are `most`."""
        self._waiting = waiting
        self._most = most
        self._serve = serve
        self._longest_wait_s = longest_wait_s
        self._context = Context()
        self._lone_batches = _LONE_BATCHES

    def record_batch(self, count: int) -> None:
        """Record the size of a batch that was served."""
        self._lone_batches = 0 if count > 1 else self._lone_batches + 1

    def arm(self) -> None:
        """Start checking from the next turn of the loop on: a first call waits."""
        loop = asyncio.get_running_loop()
        loop.call_soon(self._check, loop, loop.time() + self._longest_wait_s, context=self._context)

    def check(self) -> None:
        """Check at once: calls have been waiting already."""
        loop = asyncio.get_running_loop()
        self._check(loop, loop.time() + self._longest_wait_s)

    def _check(self, loop: asyncio.AbstractEventLoop, until: float, quiet: int = 0, before: int = 0) -> None:
        # Runs five times for each call under load. The loop is handed on, since it costs half a microsecond to ask.
        count = len(self._waiting)
        quiet = quiet + 1 if count == before else 0
        no_load = self._lone_batches >= _LONE_BATCHES
        if count >= self._most or no_load or quiet >= _QUIET_TURNS or loop.time() >= until:
            self._serve()
        else:
            loop.call_soon(self._check, loop, until, quiet, count, context=self._context)
