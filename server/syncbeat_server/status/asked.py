"""Bounds the time for which one store is asked, so that the figures of the others are not late."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from syncbeat_server.errors import SyncbeatError

_ASKED_S = 2.0

T = TypeVar("T")


async def asked(question: Awaitable[T]) -> T | None:
    """Return the answer to a question to a store; None if there is none in two seconds."""
    try:
        async with asyncio.timeout(_ASKED_S):
            return await question
    except (SyncbeatError, TimeoutError):
        return None
