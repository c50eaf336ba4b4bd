"""Carries the effects of one event out in a savepoint, so that a failure is recorded and nothing of them stays."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from syncbeat_server.audit.origin import acting_for
from syncbeat_server.errors import DeadlineExceeded, NotFound, SyncbeatError
from syncbeat_server.events.batch_plan import duplicate, event_id_reused
from syncbeat_server.events.effects import EffectRules, Notices, carry_out
from syncbeat_server.events.model import (
    NO_RESULT,
    EffectResult,
    Effects,
    EventKey,
    EventRule,
    EventState,
    IncomingEvent,
    IngestResult,
    OrderKey,
    Receipt,
)
from syncbeat_server.events.policy.effect_methods import check_allowed
from syncbeat_server.events.policy.order import OrderHead, arrival_time, is_stale, order_head
from syncbeat_server.events.policy.retries import failure_text, is_failure, retry_delay_s
from syncbeat_server.events.store import event_batches, event_rows
from syncbeat_server.events.store.event_batches import BatchWrites, HeadMove, NewEvent, RacedError
from syncbeat_server.events.store.event_rows import Conclusion, LockedEvent
from syncbeat_server.storage.postgres.database import Connection
from syncbeat_server.storage.postgres.driver_errors import StatementRejected

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Attempt:
    """Holds what one transaction has done: the answer, and what to tell after its commit.

    `changed`: the event is not as it was before, or its effects were tried; `given_up`: there will be no retry.
    """

    answer: IngestResult
    notices: Notices | None = None
    changed: bool = True
    given_up: bool = False


@dataclass(frozen=True, slots=True)
class _Work:
    # The event to attempt: new, or FAILED before.
    key: EventKey
    caller: str
    place: OrderHead
    order: OrderKey | None
    head: OrderHead | None
    effects: Effects
    attempts: int
    repetitions: int = 0


class SingleIngest:
    """Ingests and retries single events in the caller's transaction."""

    def __init__(self, rules: EffectRules, rule: EventRule) -> None:
        self._rules = rules
        self._rule = rule

    async def ingest(self, conn: Connection, event: IncomingEvent) -> Attempt:
        """Record an event and carry out its effects, or retry those of one that FAILED.

        Raises:
            AccessDenied: it FAILED before, and its sender may not do what the effects do that are on record.
            EventIdReused: the id came before with other content.
            RacedError: the transaction has to begin again.
        """
        begun_at = asyncio.get_running_loop().time()
        orders = [] if event.order is None else [event.order]
        found = await event_batches.look_up(conn, [event.key], orders)
        head = None if event.order is None else found.heads.get(event.order)
        if event.key in found.known:
            return await self._ingest_again(conn, event, head, begun_at)
        occurred_at = event.occurred_at or arrival_time(found.now, head)
        place = order_head(occurred_at, event.event_id)
        stale = is_stale(place, head)
        state = EventState.STALE if stale else EventState.ACCEPTED
        # The claim: a twin waits for it. It is FAILED by the end of the transaction if its effects are.
        recorded = BatchWrites([NewEvent(event, occurred_at, state)])
        await event_batches.write_batch(conn, recorded, self._rule.give_up_s)
        if stale:
            return Attempt(IngestResult(Receipt(state, state, found.now)))
        work = _Work(event.key, event.caller, place, event.order, head, event.effects, attempts=0)
        return await self._attempt(conn, work, Receipt(state, state, found.now))

    async def retry(self, conn: Connection, key: EventKey, methods: frozenset[str] | None) -> Attempt:
        """Carry out the effects of a FAILED event again, for a caller with these methods; answer another as it is.

        Raises:
            AccessDenied: the caller may not do what the effects do.
            NotFound: there is no such event.
            RacedError: the transaction has to begin again.
        """
        begun_at = asyncio.get_running_loop().time()
        order = await event_rows.find_order(conn, key)
        found = await event_batches.look_up(conn, [], [] if order is None else [order])
        row = await event_rows.lock_event(conn, key)
        if row is None:
            raise NotFound("there is no such event")
        if row.effects is None or row.is_over:
            given_up = await self._give_up(conn, key, row)
            known = row.known
            receipt = Receipt(known.state, known.state, known.first_seen_at, known.failure)
            return Attempt(IngestResult(receipt, known.result), changed=given_up, given_up=given_up)
        check_allowed(row.effects, methods)
        head = None if order is None else found.heads.get(order)
        async with _until_its_deadline(row, begun_at):
            return await self._attempt_again(conn, key, row, row.effects, head)

    async def _ingest_again(
        self, conn: Connection, event: IncomingEvent, head: OrderHead | None, begun_at: float
    ) -> Attempt:
        row = await event_rows.lock_event(conn, event.key)
        if row is None:
            raise RacedError  # forgotten just now
        if row.known.content_hash != event.content_hash:
            raise event_id_reused()
        if row.effects is None or row.is_over:
            await event_rows.count_repetition(conn, event.key)
            return Attempt(duplicate(row.known), changed=False)
        check_allowed(
            row.effects, event.methods
        )  # those of the first delivery, which a webhook's mapping may differ from
        async with _until_its_deadline(row, begun_at):
            return await self._attempt_again(conn, event.key, row, row.effects, head, repetitions=1)

    async def _attempt_again(
        self,
        conn: Connection,
        key: EventKey,
        row: LockedEvent,
        effects: Effects,
        head: OrderHead | None,
        repetitions: int = 0,
    ) -> Attempt:
        place = order_head(row.occurred_at, key.event_id)
        receipt = Receipt(EventState.STALE, EventState.STALE, row.known.first_seen_at)
        if is_stale(place, head):
            end = Conclusion(EventState.STALE, row.attempts, repetitions=repetitions)
            await event_rows.conclude(conn, key, end)
            return Attempt(IngestResult(receipt))
        work = _Work(key, row.caller, place, row.order, head, effects, row.attempts, repetitions)
        return await self._attempt(conn, work, receipt)

    async def _attempt(self, conn: Connection, work: _Work, receipt: Receipt) -> Attempt:
        """Carry the effects out, or record why they could not be."""
        attempts = work.attempts + 1
        await conn.execute("SAVEPOINT effects")
        try:
            with acting_for(work.caller, {"source": work.key.source, "event_id": work.key.event_id}):
                result, notices = await carry_out(conn, work.key.app_id, work.caller, work.effects, self._rules)
        except SyncbeatError as error:
            if not is_failure(error):
                raise
            if isinstance(error, StatementRejected):
                _log.error("an effect was refused (%s)", error.fault, extra=work.key._asdict())
            await conn.execute("ROLLBACK TO SAVEPOINT effects")
            failed = Conclusion(
                EventState.FAILED,
                attempts,
                failure_text(error),
                work.effects,
                retry_delay_s(self._rule, attempts),
                repetitions=work.repetitions,
            )
            due_at = await event_rows.conclude(conn, work.key, failed)
            receipt = replace(receipt, state=EventState.FAILED, event_state=EventState.FAILED, failure=failed.failure)
            return Attempt(IngestResult(receipt), given_up=due_at is None)
        await self._accept(conn, work, attempts, result)
        receipt = replace(receipt, state=EventState.ACCEPTED, event_state=EventState.ACCEPTED)
        return Attempt(IngestResult(receipt, result), notices)

    async def _accept(self, conn: Connection, work: _Work, attempts: int, result: EffectResult) -> None:
        if work.attempts or work.repetitions or result != NO_RESULT:
            end = Conclusion(EventState.ACCEPTED, attempts, result=result, repetitions=work.repetitions)
            await event_rows.conclude(conn, work.key, end)
        if work.order is not None:
            moved = BatchWrites(heads=[HeadMove(work.order, work.place, work.head is None)])
            await event_batches.write_batch(conn, moved, self._rule.give_up_s)

    async def _give_up(self, conn: Connection, key: EventKey, row: LockedEvent) -> bool:
        """Take an event whose deadline has passed out of those that are retried; False if it is none of them."""
        if row.effects is None or not row.is_waiting:
            return False
        end = Conclusion(EventState.FAILED, row.attempts, row.known.failure, row.effects)
        await event_rows.conclude(conn, key, end)
        return True


@asynccontextmanager
async def _until_its_deadline(row: LockedEvent, begun_at: float) -> AsyncIterator[None]:
    """Bound a retry by its event's deadline, which counts from when the transaction began, by the loop's clock.

    Raises:
        DeadlineExceeded: it passed; the transaction is to be rolled back.
    """
    try:
        async with asyncio.timeout_at(begun_at + row.left_s):
            yield
    except TimeoutError:
        raise DeadlineExceeded("the event's deadline passed while its effects were carried out") from None
