"""Retries FAILED events that are due: claims them under leases, so that each is retried by one process at a time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from syncbeat_server.clock import Clock
from syncbeat_server.errors import SyncbeatError
from syncbeat_server.events.ingest import EventIngest
from syncbeat_server.events.model import EventKey
from syncbeat_server.events.store import event_rows
from syncbeat_server.runtime.deadline import set_deadline
from syncbeat_server.storage.postgres.database import Database

_log = logging.getLogger(__name__)

_CALLER = "retries"


@dataclass(frozen=True)
class RetryWorkerRule:
    """Times of the worker, in seconds, and the events that it claims and attempts at once.

    An attempt ends before the lease of its claim: no other process has the event then.
    """

    poll_s: float = 1.0
    lease_s: float = 30.0
    batch: int = 64
    at_once: int = 4
    look_every_s: float = 15.0


DEFAULT_WORKER = RetryWorkerRule()


class EventRetryWorker:
    """Retries what is due as long as it runs, and tells the age of the oldest that waits."""

    def __init__(
        self,
        database: Database,
        ingest: EventIngest,
        clock: Clock,
        oldest_waiting: Callable[[float], None],
        rule: RetryWorkerRule = DEFAULT_WORKER,
    ) -> None:
        """`oldest_waiting(seconds)` is told for how long the oldest FAILED event has waited."""
        self._database = database
        self._ingest = ingest
        self._clock = clock
        self._oldest_waiting = oldest_waiting
        self._rule = rule
        self._slots = asyncio.Semaphore(rule.at_once)

    async def run(self) -> None:
        """Retry what is due until cancelled; a claim that is not concluded then is due again after its lease."""
        look_at = self._clock.monotonic()
        while True:
            claimed = 0
            try:
                if self._clock.monotonic() >= look_at:
                    look_at = self._clock.monotonic() + self._rule.look_every_s
                    await self._look()
                claimed = await self.retry_due()
            except SyncbeatError as error:
                _log.warning("cannot retry events now", extra={"reason": error.reason})
            except Exception:  # noqa: BLE001  # a bug of one event must not end the retries of all others
                _log.exception("events could not be retried")
            if claimed < self._rule.batch:
                await self._clock.sleep(self._rule.poll_s)

    async def retry_due(self) -> int:
        """Claim and retry events that are due, and return their number."""
        ends_at = self._clock.monotonic() + self._rule.lease_s
        async with self._database.connection() as conn:
            keys = await event_rows.claim_due(conn, self._rule.batch, self._rule.lease_s)
        async with asyncio.TaskGroup() as attempts:
            for key in keys:
                attempts.create_task(self._retry(key, ends_at))
        return len(keys)

    async def _retry(self, key: EventKey, ends_at: float) -> None:
        async with self._slots:
            left_s = ends_at - self._clock.monotonic()
            if left_s <= 0:
                return
            set_deadline(left_s)
            try:
                await self._ingest.retry(key, _CALLER)
            except SyncbeatError as error:
                _log.warning("an event could not be retried", extra={**key._asdict(), "reason": error.reason})
            except Exception:  # noqa: BLE001  # a bug of one event must not end the retries of all others
                _log.exception("an event could not be retried", extra=key._asdict())

    async def _look(self) -> None:
        async with self._database.connection() as conn:
            self._oldest_waiting(await event_rows.oldest_waiting_s(conn))
