"""Hands batches over from the sync task to whoever iterates over a `SmartSync`."""

from __future__ import annotations

import asyncio

from syncbeat.cursor_state import SyncBatch


class BatchHandover:
    """One batch at a time, which counts as applied when the next one is asked for."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()
        self._offered: tuple[SyncBatch, asyncio.Future[None]] | None = None
        self._taken: asyncio.Future[None] | None = None
        self._ended = False

    async def offer(self, batch: SyncBatch) -> None:
        """Offer a batch, and return when it was applied."""
        applied: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._offered = batch, applied
        self._changed.set()
        await applied

    async def take(self) -> SyncBatch | None:
        """Return the next batch; None when there will be no more."""
        if self._taken is not None and not self._taken.done():
            self._taken.set_result(None)
        self._taken = None
        while self._offered is None and not self._ended:
            self._changed.clear()
            await self._changed.wait()
        if self._ended or self._offered is None:
            return None
        batch, self._taken = self._offered
        self._offered = None
        return batch

    def end(self) -> None:
        """Make `take` return None from now on."""
        self._ended = True
        self._changed.set()
