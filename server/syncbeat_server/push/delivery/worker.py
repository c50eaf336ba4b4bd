"""Runs the delivery worker: claims due deliveries under leases, has each attempted, and keeps the queue in order.

Many workers share the queue. A crash between any two steps loses nothing: the lease expires, and the delivery is
claimed again under the same delivery id, whose second copy replaces the first one on the device.
"""

from __future__ import annotations

import asyncio
import logging
import random
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial

from syncbeat_server.clock import sleep_unless
from syncbeat_server.defaults import DELIVERY_LEASE_S, DELIVERY_POLL_S
from syncbeat_server.errors import SyncbeatError
from syncbeat_server.ops.shutdown_budget import CANCEL_AGAIN_S
from syncbeat_server.ops.tracing.spans import active
from syncbeat_server.push.accept import close_windows, expand
from syncbeat_server.push.delivery import maintenance, preflight
from syncbeat_server.push.delivery.attempt import attempt
from syncbeat_server.push.delivery.channel import Channel
from syncbeat_server.push.delivery.claim_budget import ClaimBudget
from syncbeat_server.push.delivery.dependencies import DOWN_PAUSE_S, DeliveryDependencies
from syncbeat_server.push.delivery.message_spans import attempt_span, claim_span, describe_result
from syncbeat_server.push.delivery.outcomes import OutcomeRecorder
from syncbeat_server.push.delivery.resend_scan import ResendScan
from syncbeat_server.push.delivery.scan_frontier import Frontier
from syncbeat_server.push.model import ClaimedDelivery, Lane, Reason
from syncbeat_server.push.policy.retry import RetryRule, postpone
from syncbeat_server.push.store import queue, resends
from syncbeat_server.resilience.breaker import BreakerState

_log = logging.getLogger(__name__)

_GIVE_BACK_S = 0.8
_AUDIT_EVERY_S = 30.0
_HEALTH_EVERY_S = 5.0
_BROKEN_S = 30.0
# When less than this part of the slots is in use, the next deliveries are claimed, so that claims stay large.
_REFILL = 0.5


@dataclass(frozen=True)
class WorkerRule:
    """Timing of a worker, in seconds: the length of a lease, and the time between two polls of the queue."""

    lease_s: float = DELIVERY_LEASE_S
    poll_s: float = DELIVERY_POLL_S
    retry: RetryRule = field(default_factory=RetryRule)


class DeliveryWorker:
    """Delivers what is due until it is drained."""

    def __init__(self, deps: DeliveryDependencies, rule: WorkerRule) -> None:
        """Start nothing yet: see `run`."""
        self._deps = deps
        self._rule = rule
        self._woken, self._to_expand = asyncio.Event(), asyncio.Event()
        self._draining, self._stopped = asyncio.Event(), asyncio.Event()
        self._recorder = OutcomeRecorder(deps.database, deps.clock, rule.retry.resend, deps.metrics, self.wake)
        self._resends = ResendScan(deps.database, rule.retry.resend, rule.lease_s, deps.metrics, deps.clock)
        self._budget = ClaimBudget(deps.channels, deps.allowance)
        self._due, self._expired_leases = Frontier[queue.AppLane](deps.clock), Frontier[None](deps.clock)
        self._rng = random.SystemRandom()
        self._alarm: asyncio.Task[None] | None = None
        self._apps_at_limit: set[str] = set()
        self._leased: Counter[str] = Counter()  # deliveries held, by lease token
        self._attempts: set[asyncio.Task[None]] = set()
        self._claiming = asyncio.Lock()

    def wake(self) -> None:
        """Look for due deliveries now."""
        self._woken.set()

    async def run(self) -> None:
        """Work until `drain`. When it is cancelled, the leases it holds are given back."""
        background = [
            asyncio.ensure_future(self._every(self._rule.poll_s, self._poll)),
            asyncio.ensure_future(self._every(self._rule.poll_s, self._resend_unanswered)),
            asyncio.ensure_future(self._every(_HEALTH_EVERY_S, self._mark_broken_apps)),
            asyncio.ensure_future(self._every(self._rule.lease_s / 4, self._extend_leases)),
            asyncio.ensure_future(self._every(self._rule.lease_s / 2, self._rescue)),
            asyncio.ensure_future(self._every(_AUDIT_EVERY_S, self._audit)),
            asyncio.ensure_future(self._expand()),
        ]
        try:
            await self._work()
        finally:
            background += [self._alarm] if self._alarm is not None else []
            for task in (*background, *self._attempts):
                task.cancel()
            await asyncio.gather(*background, *self._attempts, return_exceptions=True)
            await self._recorder.drain()  # what was sent counts before the rest is given back
            await self._give_back()
            self._stopped.set()

    def stop_claiming(self) -> None:
        """Begin to drain: attempts under way go on, none is added."""
        self._draining.set()
        self.wake()

    async def drain(self, seconds: float) -> None:
        """Stop claiming, and end `run` when the attempts under way are recorded, or after `seconds`.

        What is still to be recorded and given back then gets a moment more; if the database does not answer in it, the
        leases expire.
        """
        self.stop_claiming()
        loop = asyncio.get_running_loop()
        stopped = asyncio.ensure_future(self._stopped.wait())
        try:
            await asyncio.wait([stopped], timeout=seconds)
            ends = loop.time() + _GIVE_BACK_S
            while not stopped.done() and loop.time() < ends:
                # More than once: a claim that was under way may only now start its attempts.
                for task in set(self._attempts):
                    task.cancel()
                await asyncio.wait([stopped], timeout=CANCEL_AGAIN_S)
        finally:
            stopped.cancel()

    async def _work(self) -> None:
        while not self._draining.is_set():
            self._woken.clear()
            try:
                async with self._claiming:
                    more = await self._claim()
            except SyncbeatError as error:
                _log.warning("cannot claim deliveries now", extra={"reason": error.reason}, exc_info=error.__cause__)
                await self._pause(DOWN_PAUSE_S)
                continue
            if not more:
                await self._woken.wait()
        while self._attempts:
            await asyncio.wait(set(self._attempts))

    async def _pause(self, seconds: float) -> None:
        # Being woken does not end it, but draining does.
        await sleep_unless(self._deps.clock, seconds, self._draining)

    async def _claim(self) -> bool:
        """Claim what there is room for and start its attempts. Returns True if there may be more to claim at once."""
        room, retry_in_s = await self._budget.room()
        self._wake_in(retry_in_s)
        if not room:
            return False
        lease_token = str(uuid.uuid4())
        depth, since = self._due.begin_scan(), self._deps.clock.now()
        async with self._deps.database.transaction() as conn:
            begin = partial(self._due.position, depth)
            found = await queue.claim(conn, lease_token, self._rule.lease_s, room, begin)
            if found.trailing:
                await close_windows(conn, lease_token, found.trailing)
            deliveries = await queue.read_claimed(conn, lease_token, found.keys) if found.keys else []
        self._advance(room, found)
        self._due.end_scan(depth)
        if not found.keys:
            return False
        self._leased[lease_token] += len(deliveries)
        await self._start_all(lease_token, deliveries, self._trace_claim(deliveries, since))
        claimed = Counter(delivery.app_id for delivery in deliveries)
        at_limit = {app_id for app_id, most in room.items() if claimed[app_id] >= most}
        self._apps_at_limit |= at_limit
        return bool(at_limit)

    def _advance(self, room: Mapping[str, int], found: queue.Claim) -> None:
        """Remember where the scan of each lane ended."""
        claimed = Counter(app_id for app_id, _ in found.keys)
        for app_id, lane in ((app_id, lane) for app_id in room for lane in Lane):
            last = found.last.get((app_id, lane))
            if claimed[app_id] < room[app_id]:
                self._due.advance((app_id, lane), None, found.now)
            elif last is not None:
                self._due.advance((app_id, lane), last, found.now)
            # Else the other lane took all the room, and this one was not scanned to any position.

    async def _resend_unanswered(self) -> None:
        """Send unanswered wake-ups again, as far as the claims of due deliveries leave room."""
        while not self._draining.is_set():
            lease_token = str(uuid.uuid4())
            async with self._claiming:
                found = await self._resends.lease_unanswered(lease_token, self._budget.granted_room())
                if found.deliveries:
                    self._leased[lease_token] += len(found.deliveries)
                    claim = self._trace_claim(found.deliveries, self._deps.clock.now())
                    await self._start_all(lease_token, found.deliveries, claim)
            if found.decisions:
                await self._resends.record_answers(found.decisions)
            if not found.more:
                return

    async def _mark_broken_apps(self) -> None:
        """Let the processes that answer devices know of the apps whose provider is not asked now."""
        broken = {
            app_id: channel.gate.closed_for_s() + _BROKEN_S
            for app_id, channel in self._deps.channels.items()
            if not channel.has_fallback and channel.gate.is_broken
        }
        if broken:
            async with self._deps.database.connection() as conn:
                await resends.mark_broken(conn, broken)

    def _trace_claim(self, deliveries: Sequence[ClaimedDelivery], since: datetime) -> str:
        """Record the span of a claim, and return its traceparent; '' if no span is exported."""
        if self._deps.tracer is None or not deliveries:
            return ""
        span = claim_span(self._deps.tracer, deliveries, since)
        span.end()
        return span.context.traceparent

    async def _start_all(self, lease_token: str, deliveries: Sequence[ClaimedDelivery], claim: str) -> None:
        try:
            screened = await preflight.screen(self._deps, self._rule.retry, deliveries)
        except SyncbeatError as error:
            _log.warning("cannot look at deliveries now", extra={"reason": error.reason})
            screened = [postpone(delivery, Reason.NONE, DOWN_PAUSE_S) for delivery in deliveries]
        for delivery, result in zip(deliveries, screened, strict=True):
            if result is not None:
                self._start(lease_token, None, self._recorder.record(result))
            else:
                self._budget.spend(delivery.app_id)
                self._start(lease_token, self._deps.channels.get(delivery.app_id), self._attempt(delivery, claim))

    async def _attempt(self, delivery: ClaimedDelivery, claim: str) -> None:
        if self._deps.tracer is None:
            await self._recorder.record(await attempt(self._deps, self._rule.retry, delivery))
            return
        with active(attempt_span(self._deps.tracer, delivery, claim)) as span:
            result = await attempt(self._deps, self._rule.retry, delivery)
            describe_result(span, result)
            await self._recorder.record(replace(result, traceparent=span.context.traceparent))

    def _start(self, lease_token: str, channel: Channel | None, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._attempts.add(task)
        if channel is not None:
            channel.gate.in_flight += 1
        task.add_done_callback(partial(self._ended, lease_token, channel))

    def _ended(self, lease_token: str, channel: Channel | None, task: asyncio.Task[None]) -> None:
        self._attempts.discard(task)
        if channel is not None:
            channel.gate.in_flight -= 1
            if self._apps_at_limit and channel.gate.in_flight <= channel.gate.max_in_flight * _REFILL:
                self._apps_at_limit.clear()
                self._woken.set()
        if task.cancelled():
            return  # still leased, so that it is given back
        self._leased[lease_token] -= 1
        if self._leased[lease_token] <= 0:
            del self._leased[lease_token]
        error = task.exception()
        if error is not None:
            _log.error("a delivery attempt failed; its lease will run out", exc_info=error)

    def _wake_in(self, seconds: float) -> None:
        """Look again when an app may have room; the regular poll is the upper bound."""
        if 0 < seconds < self._rule.poll_s and (self._alarm is None or self._alarm.done()):
            self._alarm = asyncio.get_running_loop().create_task(self._wake_after(seconds))

    async def _wake_after(self, seconds: float) -> None:
        await self._deps.clock.sleep(seconds)
        self._woken.set()

    async def _expand(self) -> None:
        while True:
            await self._to_expand.wait()
            self._to_expand.clear()
            try:
                while await self._expand_page() is not None:
                    self._woken.set()
            except SyncbeatError as error:
                _log.warning("cannot expand a notification now", extra={"reason": error.reason})
            except Exception:  # noqa: BLE001  # one that cannot be written must not keep the others from it
                _log.exception("a notification could not be expanded")

    async def _expand_page(self) -> int | None:
        async with self._deps.database.transaction() as conn:
            return await expand(conn, list(self._deps.channels))

    async def _every(self, seconds: float, work: Callable[[], Awaitable[None]]) -> None:
        """Repeat `work` every `seconds`, with up to 30 % less at random so that workers do not act at one moment."""
        while True:
            await self._deps.clock.sleep(seconds * self._rng.uniform(0.7, 1.0))
            try:
                await work()
            except SyncbeatError as error:
                _log.warning("a background task of the delivery worker failed", extra={"reason": error.reason})
            except Exception:  # noqa: BLE001  # without its heartbeat a worker loses its leases: a bug must not end it
                _log.exception("a background task of the delivery worker broke")

    async def _poll(self) -> None:
        self._woken.set()
        self._to_expand.set()

    async def _extend_leases(self) -> None:
        if self._leased:
            async with self._deps.database.connection() as conn:
                await queue.extend(conn, list(self._leased), self._rule.lease_s)

    async def _rescue(self) -> None:
        if await maintenance.rescue(self._deps.database, self._expired_leases):
            self.wake()

    async def _audit(self) -> None:
        figures = await maintenance.audit(self._deps.database)
        self._deps.metrics.queue_counted(figures.waiting, figures.unaccounted)
        self._deps.metrics.breakers(
            {app_id: channel.gate.breaker is not BreakerState.CLOSED for app_id, channel in self._deps.channels.items()}
        )

    async def _give_back(self) -> None:
        if not self._leased:
            return
        try:
            async with self._deps.database.connection() as conn:
                await queue.release(conn, list(self._leased))
        except SyncbeatError as error:
            _log.warning("leases not given back; they will run out", extra={"reason": error.reason})
