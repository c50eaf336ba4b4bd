"""Publishes changes, and wakes the devices they concern, in one transaction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from syncbeat_server.clock import Clock
from syncbeat_server.directory.model import ChangeNotifier
from syncbeat_server.errors import InvalidRequest, SyncbeatError
from syncbeat_server.events.known_scopes import KnownScopes
from syncbeat_server.events.policy.order import check_source_times
from syncbeat_server.events.publish_concurrency import PublishConcurrency, is_large
from syncbeat_server.events.trigger import Trigger
from syncbeat_server.push.accept import accept, new_notification_id
from syncbeat_server.push.model import NewNotification
from syncbeat_server.runtime.worker_processes import RunInWorker, run_inline
from syncbeat_server.storage import idempotency
from syncbeat_server.storage.batcher import Batcher, BatchRule
from syncbeat_server.storage.idempotency import Answer, RequestKey
from syncbeat_server.storage.postgres.database import Database, RowOwner, leave_user_role, take_user_role
from syncbeat_server.sync.feed.batch_writer import ScopeMissingError, append_once
from syncbeat_server.sync.feed.writer import Append, AppendResult, append, locate_violation
from syncbeat_server.sync.model import Cursor, NewChange, WriteOutcome
from syncbeat_server.sync.policy import Prior, Tuning
from syncbeat_server.sync.tuning.hint_recorder import HintRecorder

_RPC = "PublishChanges"
_MAX_BATCH = 64
# Two batches at once lock the same busy scopes one after the other, and two of half the size cost more than one: the
# second lane is for a full batch, or for when the first one is stuck.
_SLOW_S = 0.05


@dataclass(frozen=True)
class Publish:
    """Holds one call of PublishChanges. With `user_id` it acts for an end user, who must be a writer of every scope."""

    app_id: str
    caller: str
    changes: tuple[NewChange, ...]
    trigger: Trigger | None
    user_id: str | None
    request_id: str
    content_hash: bytes

    @property
    def request(self) -> RequestKey | None:
        """Return the key under which the call is answered once; None without a request id."""
        return RequestKey.of(self.app_id, self.caller, _RPC, self.request_id, self.content_hash)


@dataclass(frozen=True)
class Published:
    """Holds the result of a publish: the sequence of each change, the new heads, the notification of its wake-ups.

    Attributes:
        moved: The heads that this call has moved; none of a replay.
        outcomes: What became of each change with a source time, None for one without; empty: none has one.
    """

    sequences: tuple[int, ...]
    heads: tuple[Cursor, ...]
    notification_id: str
    moved: tuple[Cursor, ...] = ()
    outcomes: tuple[WriteOutcome | None, ...] = ()
    replayed: bool = False


class Publisher:
    """Serves PublishChanges."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        tuning: Callable[[str], Tuning],
        notifier: ChangeNotifier,
        recorder: HintRecorder,
        offload: RunInWorker = run_inline,
    ) -> None:
        """`tuning(app)` has an app's prior; `offload` runs merges of large values.

        After a commit `notifier` hears of each new head and of wake-ups, and `recorder` samples the changes.
        """
        self._database = database
        self._clock = clock
        self._tuning = tuning
        self._notifier = notifier
        self._recorder = recorder
        self._offload = offload
        self._known_scopes = KnownScopes()
        self._concurrency = PublishConcurrency()
        self._batches: Batcher[Publish, Published] = Batcher(
            self._write, BatchRule(max_batch=_MAX_BATCH, abandons=True, slow_s=_SLOW_S)
        )

    async def publish(self, publish: Publish) -> Published:
        """Write all changes of the call, or none. A replay of its request returns the first call's result.

        Raises:
            AccessDenied: the user is not a writer of a scope.
            SequenceMismatch: a change's `expected_sequence` is not met.
            InvalidRequest: a value cannot be stored, or is from the future.
            RequestIdReused, RequestInFlight: as in `idempotency.answer_once`.
        """
        check_source_times(publish.changes, "changes", self._clock.now())
        # A user's transaction runs under a role of its own, so it is not shared with others; and nobody should wait
        # for a large call. A call that runs alone ends with its caller, so that nothing continues after the deadline.
        try:
            if publish.user_id is None and not is_large(_patch_bytes(publish)):
                return await self._batches.submit(publish)
            return await self._publish_alone(publish)
        except InvalidRequest as error:
            async with self._concurrency.slot((publish.app_id, publish.caller)), self._database.transaction() as conn:
                call = Append(publish.app_id, publish.changes)
                raise await locate_violation(conn, call, error, self._offload) from error

    async def _publish_alone(self, publish: Publish) -> Published:
        async with self._concurrency.slot_by_size((publish.app_id, publish.caller), _patch_bytes(publish)):
            (answer,) = await self._write([publish])
        if isinstance(answer, SyncbeatError):
            raise answer
        return answer

    async def _write(self, publishes: Sequence[Publish]) -> list[Published | SyncbeatError]:
        results = await (self._write_as_user(publishes[0]) if publishes[0].user_id else self._write_shared(publishes))
        for publish, result in zip(publishes, results, strict=True):
            if isinstance(result, Published) and not result.replayed:
                self._notify(publish.app_id, result)
        return results

    async def _write_shared(self, publishes: Sequence[Publish]) -> list[Published | SyncbeatError]:
        keys = {(publish.app_id, change.scope) for publish in publishes for change in publish.changes}
        try:
            results = await self._write_once(publishes, create_scopes=not self._known_scopes.include(keys))
        except ScopeMissingError:
            self._known_scopes.forget()
            results = await self._write_once(publishes, create_scopes=True)
        self._known_scopes.add(
            (publish.app_id, head.scope)
            for publish, result in zip(publishes, results, strict=True)
            if isinstance(result, Published)
            for head in result.heads
        )
        return results

    async def _write_once(
        self, publishes: Sequence[Publish], *, create_scopes: bool
    ) -> list[Published | SyncbeatError]:
        wake_ups: list[NewNotification] = []
        published: dict[int, Published] = {}

        def describe(index: int, result: AppendResult) -> str:
            wake_up = self._wake_up(publishes[index], result)
            if wake_up is not None:
                wake_ups.append(wake_up)
            published[index] = done = _done(result, wake_up)
            return _as_json(done)

        calls = [_append(publish) for publish in publishes]
        requests = [publish.request for publish in publishes]
        async with self._database.transaction() as conn:
            answers = await append_once(
                conn, requests, calls, self._prior, describe, create_scopes=create_scopes, offload=self._offload
            )
            await accept(conn, wake_ups)
        return [published.get(index) or _published(answer) for index, answer in enumerate(answers)]

    async def _write_as_user(self, publish: Publish) -> list[Published | SyncbeatError]:
        published: dict[int, Published] = {}
        async with self._database.transaction() as conn:

            async def execute(_indexes: Sequence[int]) -> list[str | SyncbeatError]:
                # The request's record is the caller's, who may be a service: only the feed is written as the user.
                await take_user_role(conn, RowOwner(publish.app_id, publish.user_id or ""))
                (result,) = await append(
                    conn, [_append(publish)], self._prior, create_scopes=False, offload=self._offload
                )
                await leave_user_role(conn)
                if isinstance(result, SyncbeatError):
                    return [result]
                wake_up = self._wake_up(publish, result)
                await accept(conn, [] if wake_up is None else [wake_up])
                published[0] = done = _done(result, wake_up)
                return [_as_json(done)]

            answers = await idempotency.answer_once(conn, [publish.request], execute)
        return [published.get(index) or _published(answer) for index, answer in enumerate(answers)]

    def _prior(self, app_id: str) -> Prior:
        return self._tuning(app_id).prior

    def _wake_up(self, publish: Publish, result: AppendResult) -> NewNotification | None:
        if publish.trigger is None or not result.moved:
            return None
        caller = publish.caller if publish.user_id is None else f"user:{publish.user_id}"
        notification_id = new_notification_id(self._clock.now())
        return publish.trigger.wake_up(publish.app_id, caller, result.moved, notification_id)

    def _notify(self, app_id: str, published: Published) -> None:
        now = self._clock.now().timestamp()
        for head in published.moved:
            self._recorder.record_change(app_id, head.scope, now)
            self._notifier.scope_changed(app_id, head.scope)
        if published.notification_id:
            self._notifier.deliveries_accepted()


def _patch_bytes(publish: Publish) -> int:
    return sum(len(change.merge_patch_json) for change in publish.changes)


def _append(publish: Publish) -> Append:
    return Append(publish.app_id, publish.changes, publish.trigger is not None)


def _done(appended: AppendResult, wake_up: NewNotification | None) -> Published:
    notification_id = "" if wake_up is None else wake_up.notification_id
    return Published(appended.sequences, appended.heads, notification_id, appended.moved, appended.outcomes)


def _as_json(published: Published) -> str:
    answer = {
        "sequences": published.sequences,
        "heads": [(head.scope, head.epoch, head.sequence) for head in published.heads],
        "notification_id": published.notification_id,
    }
    if published.outcomes:
        answer["outcomes"] = published.outcomes
    return orjson.dumps(answer).decode()


def _published(answer: Answer | SyncbeatError) -> Published | SyncbeatError:
    if not isinstance(answer, Answer):
        return answer
    stored: dict[str, Any] = orjson.loads(answer.text)
    heads = tuple(Cursor(*head) for head in stored["heads"])
    return Published(
        tuple(stored["sequences"]),
        heads,
        stored["notification_id"],
        outcomes=tuple(one and WriteOutcome(one) for one in stored.get("outcomes", ())),
        replayed=answer.replayed,
    )
