"""Limits the publishes that run at once in a transaction of their own: large ones in all, and those of each caller."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from syncbeat_server.runtime.concurrency_limit import ConcurrencyLimit

Caller = tuple[str, str]
"""An app, and who calls for it."""

# Merging takes PostgreSQL up to 1.4 us a byte: a call that shares a transaction delays the others by 0.1 s at most.
_MAX_SHARED_BYTES = 65_536
# So that large calls leave most connections (`SYNCBEAT_DATABASE_POOL_SIZE`, 8 unless set) to all others.
_MAX_LARGE_CALLS = 2
# And so that no caller takes them all with slow small calls: of those that do not share a transaction.
_MAX_ALONE_PER_CALLER = 2


def is_large(patch_bytes: int) -> bool:
    """Tell if a call with so many bytes of patches is too large to share a transaction with others."""
    return patch_bytes > _MAX_SHARED_BYTES


class PublishConcurrency:
    """The limits of one process. Whoever waits for a place holds no connection."""

    def __init__(self) -> None:
        self._large = asyncio.Semaphore(_MAX_LARGE_CALLS)
        self._alone = ConcurrencyLimit[Caller](_MAX_ALONE_PER_CALLER)

    def slot(self, caller: Caller) -> AbstractAsyncContextManager[None]:
        """Wait for one of the places of a caller, and hold it for the block."""
        return self._alone.slot(caller)

    @asynccontextmanager
    async def slot_by_size(self, caller: Caller, patch_bytes: int) -> AsyncIterator[None]:
        """Wait for one of the places of a caller and, with a large call, for one of those of large calls."""
        async with self._alone.slot(caller):
            if is_large(patch_bytes):
                async with self._large:
                    yield
            else:
                yield
