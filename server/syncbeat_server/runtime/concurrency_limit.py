"""Lets so many of each caller's pieces of work run at once; the others of that caller wait, and hold nothing."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

Caller = TypeVar("Caller", bound=Hashable)


class Turns(Generic[Caller]):
    """The work under way of each caller; who has none is not remembered."""

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._places: dict[Caller, asyncio.Semaphore] = {}
        self._callers = Counter[Caller]()

    @asynccontextmanager
    async def turn(self, caller: Caller) -> AsyncIterator[None]:
        """Holds one of the caller's places for the block, in the order in which they were asked for."""
        places = self._places.setdefault(caller, asyncio.Semaphore(self._at_once))
        self._callers[caller] += 1
        try:
            async with places:
                yield
        finally:
            self._callers[caller] -= 1
            if not self._callers[caller]:
                del self._callers[caller], self._places[caller]
