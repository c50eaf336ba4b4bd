"""When have enough calls come together to be served at once?

A lone call does not wait. Where there were several of late, more are on their way: then they gather for as long as the
loop keeps bringing calls in. So a lone call pays nothing, and under load what is served at once grows by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context

# Turns of the loop without a new call until those that wait are served, and seconds at most: an idle turn takes
# microseconds, but one in which the process does other work may take milliseconds.
# Measured where 64 calls are under way: with neither, 2 at once; with these, 40.
_QUIET_TURNS = 20
_LONGEST_S = 0.01
_ALONE = 8  # so many lone calls one after the other say that there is no load any more


class Gathering:
    """Looks at how many wait, turn by turn of the loop, and calls `serve` when it is time: in nobody's context."""

    def __init__(self, waiting: Callable[[], int], most: int, serve: Callable[[], None]) -> None:
        """`waiting` knows how many wait; when there are `most`, it is time."""
        self._waiting = waiting
        self._most = most
        self._serve = serve
        self._context = Context()
        self._alone = _ALONE

    def served(self, count: int) -> None:
        """So many were served at once."""
        self._alone = 0 if count > 1 else self._alone + 1

    def begin(self) -> None:
        """The first one waits."""
        loop = asyncio.get_running_loop()
        loop.call_soon(self._look, loop.time() + _LONGEST_S, context=self._context)

    def look(self) -> None:
        """There are some that wait already."""
        self._look(asyncio.get_running_loop().time() + _LONGEST_S)

    def _look(self, until: float, quiet: int = 0, before: int = 0) -> None:
        # Serve those that wait, or look again after a turn of the loop.
        count, loop = self._waiting(), asyncio.get_running_loop()
        quiet = quiet + 1 if count == before else 0
        if count >= self._most or self._alone >= _ALONE or quiet >= _QUIET_TURNS or loop.time() >= until:
            self._serve()
        else:
            loop.call_soon(self._look, until, quiet, count, context=self._context)
