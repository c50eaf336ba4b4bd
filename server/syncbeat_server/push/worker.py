"""The delivery worker: claims leased deliveries, sends them through their app's provider, records what came of it.

Many workers share the queue. A crash between any two steps loses nothing: the lease runs out, and the delivery is
claimed again under the same delivery id, which replaces the first copy on the device.
"""

from __future__ import annotations

import asyncio
import logging
import random
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from syncbeat_server.clock import Clock
from syncbeat_server.errors import DependencyDown, Overloaded, SyncbeatError
from syncbeat_server.push import policy, queue
from syncbeat_server.push.model import ClaimedDelivery, Finished, Kind, Outcome, Reason, Verdict
from syncbeat_server.push.policy import RetryRule
from syncbeat_server.push.providers import Provider
from syncbeat_server.storage import idempotency
from syncbeat_server.storage.batching import Batcher
from syncbeat_server.storage.postgres import Database

_log = logging.getLogger(__name__)

_CLAIM_BATCH = 200
_RESCUE_BATCH = 1_000
_PRUNE_BATCH = 1_000
_DOWN_PAUSE_S = 0.5
_CANCEL_AGAIN_S = 0.2

Live = Callable[[Sequence[tuple[str, str, str]]], Awaitable[Sequence[bool]]]
"""For each (app, user, device) whether it has a live stream somewhere."""


@dataclass(frozen=True)
class WorkerRule:
    """How a worker works: length of a lease, how often it looks unasked, how many attempts at once."""

    lease_s: float = 30.0
    poll_s: float = 1.0
    in_flight: int = 200
    retry: RetryRule = field(default_factory=RetryRule)


class DeliveryWorker:
    """Delivers what is due until it is drained."""

    def __init__(
        self,
        database: Database,
        providers: Mapping[str, Provider],
        live: Live,
        rule: WorkerRule,
        clock: Clock,
        attempt_ended: Callable[[str], None],
    ) -> None:
        """`providers` by app; `attempt_ended(outcome)` is told of each attempt (the metrics hook)."""
        self._database = database
        self._providers = providers
        self._live = live
        self._rule = rule
        self._clock = clock
        self._attempt_ended = attempt_ended
        self._dice = random.SystemRandom()
        self._woken = asyncio.Event()
        self._stopped = asyncio.Event()
        self._draining = False
        self._held: Counter[str] = Counter()
        self._attempts: set[asyncio.Task[None]] = set()
        self._records: Batcher[Finished, None] = Batcher(self._record_batch)

    def wake(self) -> None:
        """There may be something due."""
        self._woken.set()

    async def run(self) -> None:
        """Work until `drain`; whatever is held when cancelled is given back."""
        chores = [
            asyncio.ensure_future(self._every(self._rule.poll_s, self._look)),
            asyncio.ensure_future(self._every(self._rule.lease_s / 4, self._extend)),
            asyncio.ensure_future(self._every(self._rule.lease_s / 2, self._tidy)),
        ]
        try:
            await self._work()
        finally:
            for task in (*chores, *self._attempts):
                task.cancel()
            await asyncio.gather(*chores, *self._attempts, return_exceptions=True)
            await self._records.drain()  # what was sent counts before the rest is given back
            await self._give_back()
            self._stopped.set()

    async def drain(self, seconds: float) -> None:
        """Claim no more, and end `run` when the attempts under way are recorded, or after `seconds`."""
        self._draining = True
        self.wake()
        stopped = asyncio.ensure_future(self._stopped.wait())
        try:
            await asyncio.wait([stopped], timeout=seconds)
            while not stopped.done():
                # More than once: a claim that was under way may only now start its attempts.
                for task in set(self._attempts):
                    task.cancel()
                await asyncio.wait([stopped], timeout=_CANCEL_AGAIN_S)
        finally:
            stopped.cancel()

    async def _work(self) -> None:
        while not self._draining:
            self._woken.clear()
            free = self._rule.in_flight - len(self._attempts)
            try:
                took = await self._take(min(free, _CLAIM_BATCH)) if free > 0 else 0
            except SyncbeatError as error:
                _log.warning("cannot claim deliveries now", extra={"reason": error.reason}, exc_info=error.__cause__)
                await self._clock.sleep(_DOWN_PAUSE_S)
                continue
            if free <= 0 or took < min(free, _CLAIM_BATCH):
                await self._woken.wait()
        while self._attempts:
            await asyncio.wait(set(self._attempts))

    async def _take(self, limit: int) -> int:
        lease_token = str(uuid.uuid4())
        async with self._database.transaction() as conn:
            ids = await queue.claim(conn, lease_token, self._rule.lease_s, limit)
            if not ids:
                return 0
            await queue.close_trailed_windows(conn, lease_token)
            deliveries = await queue.claimed(conn, lease_token, ids)
        self._held[lease_token] += len(deliveries)
        for delivery, live in zip(deliveries, await self._ask_live(deliveries), strict=True):
            needless = policy.triage(delivery, live, self._rule.retry)
            self._start(lease_token, self._record(needless) if needless is not None else self._attempt(delivery))
        return len(ids)

    async def _ask_live(self, deliveries: Sequence[ClaimedDelivery]) -> list[bool]:
        # A message is always pushed; only a wake-up may be left to the stream.
        asked = {(d.app_id, d.user_id, d.device_id) for d in deliveries if d.kind is Kind.SYNC and not d.held}
        if not asked:
            return [False] * len(deliveries)
        ordered = list(asked)
        found = dict(zip(ordered, await self._live(ordered), strict=True))
        return [found.get((d.app_id, d.user_id, d.device_id), False) for d in deliveries]

    def _start(self, lease_token: str, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._attempts.add(task)
        task.add_done_callback(partial(self._ended, lease_token))

    def _ended(self, lease_token: str, task: asyncio.Task[None]) -> None:
        if len(self._attempts) >= self._rule.in_flight:
            self.wake()
        self._attempts.discard(task)
        if task.cancelled():
            return  # still held, so that it is given back
        self._held[lease_token] -= 1
        if self._held[lease_token] <= 0:
            del self._held[lease_token]
        error = task.exception()
        if error is not None:
            _log.error("a delivery attempt failed; its lease will run out", exc_info=error)

    async def _attempt(self, delivery: ClaimedDelivery) -> None:
        outcome = await self._send(delivery)
        self._attempt_ended(outcome.reason or outcome.verdict)
        await self._record(policy.conclude(delivery, outcome, self._rule.retry, self._dice))

    async def _send(self, delivery: ClaimedDelivery) -> Outcome:
        provider = self._providers.get(delivery.app_id)
        if provider is None:
            return Outcome(Verdict.RETRY, Reason.PROVIDER_CONFIG)
        try:
            return await provider.send(delivery)
        except Exception:  # noqa: BLE001  # a provider's fault must not cost the delivery, nor the worker
            _log.exception("a provider raised", extra={"delivery_id": delivery.delivery_id})
            return Outcome(Verdict.RETRY, Reason.AMBIGUOUS)

    async def _record(self, finished: Finished) -> None:
        # Sent is sent: while the lease can still be ours, an outage of the database must not make it sent again.
        while True:
            try:
                await self._records.submit(finished)
            except (DependencyDown, Overloaded) as error:
                _log.warning("cannot record an attempt yet", extra={"reason": error.reason})
                await self._clock.sleep(_DOWN_PAUSE_S)
            else:
                return

    async def _record_batch(self, finished: Sequence[Finished]) -> list[None]:
        async with self._database.transaction() as conn:
            recorded = await queue.finish(conn, finished)
            dead = [
                f.delivery for f in finished if f.reason is Reason.UNREGISTERED and f.delivery.delivery_id in recorded
            ]
            if dead:
                await queue.drop_dead_tokens(conn, dead)
        if len(recorded) < len(finished):
            _log.warning("leases ran out before their attempts ended", extra={"count": len(finished) - len(recorded)})
        return [None] * len(finished)

    async def _every(self, seconds: float, chore: Callable[[], Awaitable[None]]) -> None:
        while True:
            await self._clock.sleep(seconds * self._dice.uniform(0.7, 1.0))
            try:
                await chore()
            except SyncbeatError as error:
                _log.warning("a chore of the delivery worker failed", extra={"reason": error.reason})

    async def _look(self) -> None:
        self.wake()

    async def _extend(self) -> None:
        if self._held:
            async with self._database.connection() as conn:
                await queue.extend(conn, list(self._held), self._rule.lease_s)

    async def _tidy(self) -> None:
        async with self._database.connection() as conn:
            rescued = await queue.rescue(conn, _RESCUE_BATCH)
            await queue.forget_windows(conn, _PRUNE_BATCH)
            await idempotency.forget_old(conn, _PRUNE_BATCH)
        if rescued:
            _log.warning("took over deliveries whose worker was gone", extra={"count": rescued})
            self.wake()

    async def _give_back(self) -> None:
        if not self._held:
            return
        try:
            async with self._database.connection() as conn:
                await queue.release(conn, list(self._held))
        except SyncbeatError as error:
            _log.warning("leases not given back; they will run out", extra={"reason": error.reason})
