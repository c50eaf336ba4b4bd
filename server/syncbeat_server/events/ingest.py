"""Ingests events: those that come together in one transaction, those that need their own in theirs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

from syncbeat_server.audit.model import AuditAction
from syncbeat_server.audit.record import record
from syncbeat_server.directory.model import ChangeNotifier
from syncbeat_server.errors import Overloaded, SyncbeatError
from syncbeat_server.events.batch_ingest import BatchIngest
from syncbeat_server.events.batch_plan import Outcome, RunAloneError
from syncbeat_server.events.effects import EffectRules, Notices, announce
from syncbeat_server.events.model import EventKey, EventRule, EventState, IncomingEvent, IngestResult
from syncbeat_server.events.policy.effect_methods import check_allowed
from syncbeat_server.events.policy.order import check_source_times
from syncbeat_server.events.single_ingest import Attempt, SingleIngest
from syncbeat_server.events.store.event_batches import RacedError
from syncbeat_server.ops.tracing.spans import current_traceparent
from syncbeat_server.runtime.concurrency_limit import ConcurrencyLimit
from syncbeat_server.runtime.deadline import time_left_s
from syncbeat_server.storage.batcher import Batcher, BatchRule
from syncbeat_server.storage.postgres.database import Connection, Database
from syncbeat_server.storage.postgres.driver_errors import Conflict, LockTimeout
from syncbeat_server.sync.tuning.hint_recorder import HintRecorder

_MAX_BATCH = 64
_SLOW_S = 0.05
# As of publishes: an event that shares a transaction delays the others by 0.1 s of work at most, and no caller takes
# all connections with events that do not. For how long locks of others delay a batch, `BatchIngest` says.
_MAX_SHARED_BYTES = 65_536
_MAX_ALONE_PER_CALLER = 2
_MAX_TRIES = 5
_LEAST_LEFT_S = 0.05


class EventCounts(Protocol):
    """Counts events for the metrics."""

    def ingested(self, app_id: str, source: str, state: EventState, /) -> None:
        """Count an event that came, by what became of it."""
        ...

    def retried(self, app_id: str, source: str, state: EventState, /, *, given_up: bool) -> None:
        """Count another attempt of an event that had FAILED."""
        ...


class EventIngest:
    """Takes events in, each once, with their effects in the same transaction."""

    def __init__(
        self,
        database: Database,
        rules: EffectRules,
        rule: EventRule,
        notifier: ChangeNotifier,
        recorder: HintRecorder,
        counts: EventCounts,
    ) -> None:
        """After a commit `notifier` hears of what changed, and `recorder` samples the changes of scopes."""
        self._database = database
        self._rules = rules
        self._single = SingleIngest(rules, rule)
        self._batch = BatchIngest(database, rules, rule.give_up_s)
        self._notifier = notifier
        self._recorder = recorder
        self._counts = counts
        # Further calls of a caller wait without a connection.
        self._alone = ConcurrencyLimit[tuple[str, str]](_MAX_ALONE_PER_CALLER)
        self._batches: Batcher[IncomingEvent, IngestResult] = Batcher(
            self._ingest_batch, BatchRule(max_batch=_MAX_BATCH, abandons=True, slow_s=_SLOW_S)
        )

    async def ingest(self, event: IncomingEvent) -> IngestResult:
        """Record an event and carry out its effects, by the deadline of the context (`runtime/deadline.py`).

        A repetition waits for the first, and is answered as that was; one of a FAILED event retries it.

        Raises:
            AccessDenied: its sender may not do what an effect does; nothing is recorded.
            InvalidRequest: a change of it is from the future; nothing is recorded.
            EventIdReused: its id came before with other content.
            Overloaded, DependencyDown, DeadlineExceeded: nothing is recorded; the sender comes again.
        """
        check_allowed(event.effects, event.methods)
        check_source_times(event.effects.changes, "effects.changes", self._rules.clock.now())
        answer: IngestResult | None = None
        if _is_shared(event):
            # A twin that takes longer than a lock is waited for is waited for again, alone.
            with suppress(RunAloneError, LockTimeout):
                answer = await self._batches.submit(_with_trace(event))
        if answer is None:
            answer = await self._ingest_alone(event)
        self._counts.ingested(event.app_id, event.source, answer.receipt.state)
        return answer

    async def retry(
        self, key: EventKey, caller: str, methods: frozenset[str] | None = None, *, audited: bool = False
    ) -> IngestResult:
        """Carry out the effects of a FAILED event again, for a caller who may call `methods`; None: all.

        An event in another state is answered as it is. `audited`: somebody asked for it, and the audit log is to say
        who. Raises NotFound, or as `ingest`.
        """

        async def work(conn: Connection) -> Attempt:
            attempt = await self._single.retry(conn, key, methods)
            if audited and attempt.changed:
                state = attempt.answer.receipt.state
                await record(conn, key.app_id, AuditAction.EVENT_RETRIED, _subject_of(key), state=state.value)
            return attempt

        attempt = await self._run_alone((key.app_id, caller), work)
        if attempt.changed:
            state = attempt.answer.receipt.state
            self._counts.retried(key.app_id, key.source, state, given_up=attempt.given_up)
        return attempt.answer

    async def _ingest_batch(self, events: Sequence[IncomingEvent]) -> Sequence[IngestResult | Exception]:
        outcomes: list[Outcome]
        outcomes, notices = await self._batch.ingest(events)
        self._announce(notices)
        return outcomes

    async def _ingest_alone(self, event: IncomingEvent) -> IngestResult:
        async def work(conn: Connection) -> Attempt:
            return await self._single.ingest(conn, event)

        attempt = await self._run_alone((event.app_id, event.caller), work)
        if attempt.given_up:
            self._counts.retried(event.app_id, event.source, attempt.answer.receipt.state, given_up=True)
        return attempt.answer

    async def _run_alone(self, caller: tuple[str, str], work: Callable[[Connection], Awaitable[Attempt]]) -> Attempt:
        """Run one event's transaction, again where another one was in its way, until the deadline."""
        tries = 0
        while True:
            tries += 1
            try:
                async with self._alone.slot(caller), self._database.transaction() as conn:
                    attempt = await work(conn)
                break
            except (RacedError, Conflict, LockTimeout) as error:
                if tries < _MAX_TRIES and time_left_s() > _LEAST_LEFT_S:
                    continue
                if isinstance(error, SyncbeatError):
                    raise
                raise Overloaded("other calls are ingesting this event now") from None
        if attempt.notices is not None:
            self._announce([attempt.notices])
        return attempt

    def _announce(self, notices: Sequence[Notices]) -> None:
        announce(notices, self._notifier, self._recorder, self._rules.clock)


def _subject_of(key: EventKey) -> str:
    return f"event:{key.source}/{key.event_id}"


def _with_trace(event: IncomingEvent) -> IncomingEvent:
    traceparent = current_traceparent()
    return replace(event, traceparent=traceparent) if traceparent else event


def _is_shared(event: IncomingEvent) -> bool:
    effects = event.effects
    if effects.users or effects.members or effects.tiers:
        return False
    octets = len(event.payload_json) + sum(len(change.merge_patch_json) for change in effects.changes)
    return octets <= _MAX_SHARED_BYTES
