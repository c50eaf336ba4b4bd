"""Limits how much work of each caller runs at once; further work of that caller waits, and holds no resource."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

Caller = TypeVar("Caller", bound=Hashable)


class ConcurrencyLimit(Generic[Caller]):
    """Slots for the work of each caller. Callers without work take no memory."""

    def __init__(self, per_caller: int) -> None:
        self._per_caller = per_caller
        self._slots: dict[Caller, asyncio.Semaphore] = {}
        self._blocks = Counter[Caller]()

    @asynccontextmanager
    async def slot(self, caller: Caller) -> AsyncIterator[None]:
        """Hold one of the caller's slots for the block; blocks get them in the order in which they asked."""
        slots = self._slots.setdefault(caller, asyncio.Semaphore(self._per_caller))
        self._blocks[caller] += 1
        try:
            async with slots:
                yield
        finally:
            self._blocks[caller] -= 1
            if not self._blocks[caller]:
                del self._blocks[caller], self._slots[caller]
