"""When have enough calls come together to be served at once?

A lone call does not wait. Where there were several of late, more are on their way: then they gather for as long as the
loop keeps bringing calls in. So a lone call pays nothing, and under load what is served at once grows by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context

# Turns of the loop: without a new call until those that wait are served, and at most. An idle turn takes microseconds;
# under load a turn has work to do. Measured where 64 calls are under way: with neither, 2 at once; with these, 40.
_QUIET_TURNS = 20
_MAX_TURNS = 500
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
        asyncio.get_running_loop().call_soon(self.look, context=self._context)

    def look(self, turns: int = 0, quiet: int = 0, before: int = 0) -> None:
        """Serve those that wait, or look again after a turn of the loop."""
        count = self._waiting()
        quiet = quiet + 1 if count == before else 0
        if count >= self._most or self._alone >= _ALONE or quiet >= _QUIET_TURNS or turns >= _MAX_TURNS:
            self._serve()
        else:
            asyncio.get_running_loop().call_soon(self.look, turns + 1, quiet, count, context=self._context)
