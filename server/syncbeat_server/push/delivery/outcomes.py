"""Records what became of claimed deliveries, many in one statement, and what the provider said of their tokens."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from syncbeat_server.clock import Clock
from syncbeat_server.directory.store import dead_token_removal
from syncbeat_server.errors import DependencyDown, Overloaded
from syncbeat_server.push.delivery.dependencies import DOWN_PAUSE_S
from syncbeat_server.push.delivery.worker_metrics import WorkerMetrics
from syncbeat_server.push.model import DeliveryState, DeliveryUpdate, Kind, Reason
from syncbeat_server.push.policy.resend import ResendRule, await_answer
from syncbeat_server.push.policy.retry import MAX_REDIRECTS
from syncbeat_server.push.policy.transitions import Event, update
from syncbeat_server.push.store import alerts, queue, wake_budgets
from syncbeat_server.storage.batcher import Batcher
from syncbeat_server.storage.postgres.database import Connection, Database

_log = logging.getLogger(__name__)

_HELD_FOR_USER = (Reason.QUIET_HOURS, Reason.DAILY_MAXIMUM)


class OutcomeRecorder:
    """Writes updates under the lease of their delivery; those of a worker that lost its lease are void."""

    def __init__(
        self, database: Database, clock: Clock, rule: ResendRule, metrics: WorkerMetrics, wake: Callable[[], None]
    ) -> None:
        """`wake` is called after recording something that is due at once."""
        self._database = database
        self._clock = clock
        self._rule = rule
        self._metrics = metrics
        self._wake = wake
        self._batches: Batcher[DeliveryUpdate, None] = Batcher(self._write)

    async def record(self, result: DeliveryUpdate) -> None:
        """Write one update; returns when it is committed, however long the database is down."""
        # What was sent must not be sent again because of an outage, as long as the lease may still be ours.
        while True:
            try:
                await self._batches.submit(result)
            except (DependencyDown, Overloaded) as error:
                _log.warning("cannot record an attempt yet", extra={"reason": error.reason})
                await self._clock.sleep(DOWN_PAUSE_S)
            else:
                return

    async def drain(self) -> None:
        """Wait until what was submitted is written."""
        await self._batches.drain()

    async def _write(self, results: Sequence[DeliveryUpdate]) -> list[None]:
        async with self._database.transaction() as conn:
            results = [await_answer(one, self._rule) for one in await self._apply_token_verdicts(conn, results)]
            recorded = await queue.finish(conn, results)
            out_of_budget = [one.delivery for one in results if one.reason is Reason.WAKE_BUDGET]
            if out_of_budget:
                await wake_budgets.merge_held(conn, out_of_budget)
            held = [r.delivery for r in results if r.reason in _HELD_FOR_USER and r.delivery.kind is Kind.SYNC]
            if held:
                await alerts.merge_held(conn, held)
        self._count(results, void=len(results) - len(recorded))
        if any(one.redirected for one in results):
            self._wake()
        return [None] * len(results)

    def _count(self, results: Sequence[DeliveryUpdate], *, void: int) -> None:
        if void:
            # A device that acknowledges before its attempt ended leaves nothing to record either.
            _log.info("attempts ended without their lease", extra={"count": void})
            self._metrics.outcomes_voided(void)
        for one in results:
            if one.state is DeliveryState.SENT and not one.give_back_attempt and one.delivery.silent:
                self._metrics.woken(one.delivery.app_id, one.delivery.resends > 0)

    async def _apply_token_verdicts(
        self, conn: Connection, results: Sequence[DeliveryUpdate]
    ) -> Sequence[DeliveryUpdate]:
        """Remove dead tokens, quarantine those of another sender, and redirect to tokens that are newer."""
        foreign = [one.delivery.token_use for one in results if one.reason is Reason.WRONG_SENDER]
        dead = [one.delivery.token_use for one in results if one.reason is Reason.UNREGISTERED]
        if foreign or dead:
            await dead_token_removal.lock_devices(conn, dead, foreign)
        if foreign:
            await dead_token_removal.quarantine(conn, foreign)
        if not dead:
            return results
        invalid = frozenset(one.delivery.delivery_id for one in results if one.invalid_token)
        removal = await dead_token_removal.remove_dead_tokens(conn, dead, invalid)
        for app_id in removal.limit_hit:
            self._metrics.removal_limit_hit(app_id)
            _log.error(
                "the provider calls too many registration tokens dead: none is removed now; is the project right?",
                extra={"app_id": app_id},
            )
        return [_redirected(one) if one.delivery.delivery_id in removal.replaced else one for one in results]


def _redirected(result: DeliveryUpdate) -> DeliveryUpdate:
    if result.delivery.redirects >= MAX_REDIRECTS:
        return result
    return update(
        result.delivery,
        Event.REDIRECT,
        provider_message_id=result.provider_message_id,
        invalid_token=result.invalid_token,
    )
