"""Delivery workers for tests: with a script for a provider and the fake clock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

from syncbeat_server.push.delivery.dependencies import DeliveryDependencies
from syncbeat_server.push.delivery.worker import DeliveryWorker, WorkerRule
from syncbeat_server.push.delivery.worker_metrics import NoMetrics
from syncbeat_server.push.providers import Provider
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.storage.redis.token_bucket import TokenBucket
from tests.fakes import FakeClock, settle
from tests.storage.doubles import Streams, Unlimited, channel
from tests.storage.stage import APP, shown, until, value_of


class AttemptMetrics(NoMetrics):
    """Passes on the outcome of each attempt."""

    def __init__(self, on_attempt: Callable[[str], None]) -> None:
        self._on_attempt = on_attempt

    def attempt_ended(self, outcome: str) -> None:
        self._on_attempt(outcome)


def make_worker(
    database: Database,
    clock: FakeClock,
    provider: Provider,
    *,
    streams: Streams | None = None,
    attempt_ended: Callable[[str], None] = lambda outcome: None,
    in_flight: int = 200,
    app: dict[str, Any] | None = None,
    **rule: Any,
) -> DeliveryWorker:
    """A worker of the default app; `app` are fields of its channel, `rule` of the worker's."""
    deps = DeliveryDependencies(
        database,
        {APP: channel(provider, clock, in_flight, **(app or {}))},
        (streams or Streams()).live,
        cast(TokenBucket, Unlimited()),
        clock,
        AttemptMetrics(attempt_ended),
    )
    return DeliveryWorker(deps, WorkerRule(**rule))


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
