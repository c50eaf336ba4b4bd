"""Runs delivery workers, and waits for what becomes of deliveries."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from syncbeat_server.push.delivery.worker import DeliveryWorker
from syncbeat_server.storage.postgres.database import Database
from tests.support.fake_clock import FakeClock, settle
from tests.support.seed import shown, until, value_of


@asynccontextmanager
async def running(*workers: DeliveryWorker, patience_s: float = 20.0) -> AsyncIterator[None]:
    """Run workers for the block, and drain them: attempts that are under way then end within `patience_s` or are given
    back."""
    tasks = [asyncio.ensure_future(worker.run()) for worker in workers]
    try:
        await settle()
        yield
    finally:
        await asyncio.gather(*(worker.drain(patience_s) for worker in workers))
        await asyncio.wait_for(asyncio.gather(*tasks), 20)


async def until_shown(database: Database, *expected: str, of: Any, moving: FakeClock | None = None) -> None:
    """Wait for what becomes of a notification, while the clock moves if it is given.

    A chore that asks the database while the clock moves starts its next sleep late, so that a move by a fixed time may
    end before it does.
    """

    async def reached() -> bool:
        if moving is not None:
            await moving.advance(1.0)
        return await shown(database, of) == list(expected)

    await until(reached, what=f"{expected}")


async def until_due(database: Database, clock: FakeClock) -> None:
    """Move to just after the next delivery is due, and a worker that looks each second has looked."""
    due = await value_of(database, "SELECT min(due_at) FROM deliveries WHERE state IN ('PENDING', 'HELD', 'SCHEDULED')")
    await clock.advance((due - clock.now()).total_seconds() + 1.0)
