"""Publish changes, and wake the devices they concern, in one transaction."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson

from syncbeat_server.clock import Clock
from syncbeat_server.errors import InvalidRequest, SyncbeatError
from syncbeat_server.push.accept import accept, new_notification_id
from syncbeat_server.push.model import Content, Kind, Lane, NewNotification, Target
from syncbeat_server.runtime.concurrency_limit import ConcurrencyLimit
from syncbeat_server.runtime.worker_processes import RunInWorker, run_inline
from syncbeat_server.storage import idempotency
from syncbeat_server.storage.batcher import Batcher
from syncbeat_server.storage.idempotency import Answer, RequestKey
from syncbeat_server.storage.postgres.database import Connection, Database, RowOwner, leave_user_role, take_user_role
from syncbeat_server.sync.feed.writer import Append, Appended, append, blame
from syncbeat_server.sync.model import Cursor, NewChange
from syncbeat_server.sync.policy import Prior, Tuning

_RPC = "PublishChanges"
_WAKE_TTL_S = 3600.0
_MAX_BATCH = 64
# Merging takes PostgreSQL up to 1.4 us a byte: what shares a transaction makes the others wait for 0.1 s at most.
_MAX_SHARED_BYTES = 65_536
# So that what is large leaves most connections (`SYNCBEAT_DATABASE_POOL_SIZE`, 8 unless set) to all others.
_LARGE_AT_ONCE = 2
# And so that no caller takes them by what is slow and small: of what does not share a transaction.
_ALONE_AT_ONCE = 2


@dataclass(frozen=True)
class Trigger:
    """The devices to wake for a publish: every member's but the excluded ones. No content: a silent wake-up.

    `exclude_device_of` is whose device is excluded; None: everybody's with its id.
    """

    type: str
    exclude_user_id: str
    exclude_device_id: str
    content: Content
    dedupe_window_s: float
    exclude_device_of: str | None = None


@dataclass(frozen=True)
class Publish:
    """One call of PublishChanges. `user_id` set: in the name of an end user, who must be a writer of every scope."""

    app_id: str
    caller: str
    changes: tuple[NewChange, ...]
    trigger: Trigger | None
    user_id: str | None
    request_id: str
    content_hash: bytes

    @property
    def request(self) -> RequestKey | None:
        """Under what it is answered once."""
        return RequestKey.of(self.app_id, self.caller, _RPC, self.request_id, self.content_hash)


@dataclass(frozen=True)
class Published:
    """What became of a publish: a sequence for each change, the new heads, the notification that wakes devices."""

    sequences: tuple[int, ...]
    heads: tuple[Cursor, ...]
    notification_id: str
    replayed: bool = False


class Publisher:
    """PublishChanges."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        tuning: Callable[[str], Tuning],
        scope_changed: Callable[[str, str], None],
        deliveries_accepted: Callable[[], None],
        aside: RunInWorker = run_inline,
    ) -> None:
        """`tuning` has each app's prior; `aside` runs merges of large values.

        After a commit, `scope_changed(app, scope)` is told of each new head, `deliveries_accepted` of wake-ups."""
        self._database = database
        self._clock = clock
        self._tuning = tuning
        self._scope_changed = scope_changed
        self._deliveries_accepted = deliveries_accepted
        self._large = asyncio.Semaphore(_LARGE_AT_ONCE)
        # Others of a caller's wait without a connection.
        self._places = ConcurrencyLimit[tuple[str, str]](_ALONE_AT_ONCE)
        self._aside = aside
        self._publishes: Batcher[Publish, Published] = Batcher(self._write, max_batch=_MAX_BATCH, abandons=True)

    async def publish(self, publish: Publish) -> Published:
        """Write all changes of the call, or none. A replay of its request answers what the first call was answered.

        Raises:
            AccessDenied: the user is not a writer of a scope.
            SequenceMismatch: a change's `expected_sequence` is not met.
            InvalidRequest: a value cannot be stored.
            RequestIdReused, RequestInFlight: as in `idempotency.answer_once`.
        """
        # A user's transaction runs under a role of its own, so it is not shared with others; and nobody is to wait for
        # what is large. What runs alone ends with its caller, so that nothing goes on after the deadline.
        try:
            if publish.user_id is None and _weight(publish) <= _MAX_SHARED_BYTES:
                return await self._publishes.submit(publish)
            return await self._publish_alone(publish)
        except InvalidRequest as error:
            async with self._places.slot((publish.app_id, publish.caller)), self._database.transaction() as conn:
                call = Append(publish.app_id, publish.changes)
                raise await blame(conn, call, error, self._aside) from error

    async def _publish_alone(self, publish: Publish) -> Published:
        async with self._places.slot((publish.app_id, publish.caller)):
            if _weight(publish) > _MAX_SHARED_BYTES:
                async with self._large:
                    (answer,) = await self._write([publish])
            else:
                (answer,) = await self._write([publish])
        if isinstance(answer, SyncbeatError):
            raise answer
        return answer

    async def _write(self, publishes: Sequence[Publish]) -> list[Published | SyncbeatError]:
        async with self._database.transaction() as conn:

            async def carry_out(indexes: Sequence[int]) -> list[str | SyncbeatError]:
                return await self._carry_out(conn, [publishes[i] for i in indexes])

            answers = await idempotency.answer_once(conn, [publish.request for publish in publishes], carry_out)
        results = [_published(answer) for answer in answers]
        for publish, result in zip(publishes, results, strict=True):
            if isinstance(result, Published) and not result.replayed:
                self._tell(publish.app_id, result)
        return results

    async def _carry_out(self, conn: Connection, publishes: Sequence[Publish]) -> list[str | SyncbeatError]:
        first = publishes[0]
        by_user = first.user_id is not None
        calls = [Append(publish.app_id, publish.changes, publish.trigger is not None) for publish in publishes]
        # The request's record is the caller's, who may be a service: only the feed is written as the user.
        if first.user_id is not None:
            await take_user_role(conn, RowOwner(first.app_id, first.user_id))
        appended = await append(conn, calls, self._prior, create_scopes=not by_user, aside=self._aside)
        if by_user:
            await leave_user_role(conn)
        woken: dict[int, NewNotification] = {}
        for index, (publish, result) in enumerate(zip(publishes, appended, strict=True)):
            if publish.trigger is not None and isinstance(result, Appended):
                woken[index] = self._wake_up(publish, publish.trigger, result.heads)
        await accept(conn, list(woken.values()))
        return [
            result if isinstance(result, SyncbeatError) else _as_json(result, woken.get(index))
            for index, result in enumerate(appended)
        ]

    def _prior(self, app_id: str) -> Prior:
        return self._tuning(app_id).prior

    def _wake_up(self, publish: Publish, trigger: Trigger, heads: Sequence[Cursor]) -> NewNotification:
        return NewNotification(
            app_id=publish.app_id,
            notification_id=new_notification_id(self._clock.now()),
            kind=Kind.SYNC,
            caller=publish.caller if publish.user_id is None else f"user:{publish.user_id}",
            content=trigger.content,
            targets=tuple(
                Target(
                    scope=head.scope,
                    epoch=head.epoch,
                    sequence=head.sequence,
                    exclude_user_id=trigger.exclude_user_id or None,
                    exclude_device_id=trigger.exclude_device_id or None,
                    exclude_device_of=trigger.exclude_device_of,
                )
                for head in heads
            ),
            type=trigger.type,
            dedupe_key=f"sync:{trigger.type}" if trigger.dedupe_window_s > 0 else "",
            dedupe_window_s=trigger.dedupe_window_s,
            lane=Lane.HIGH,
            ttl_s=_WAKE_TTL_S + trigger.dedupe_window_s,
            patient=trigger.content.is_alert,
        )

    def _tell(self, app_id: str, published: Published) -> None:
        for head in published.heads:
            self._scope_changed(app_id, head.scope)
        if published.notification_id:
            self._deliveries_accepted()


def _weight(publish: Publish) -> int:
    return sum(len(change.merge_patch_json) for change in publish.changes)


def _as_json(appended: Appended, woken: NewNotification | None) -> str:
    answer = {
        "sequences": appended.sequences,
        "heads": [(head.scope, head.epoch, head.sequence) for head in appended.heads],
        "notification_id": "" if woken is None else woken.notification_id,
    }
    return orjson.dumps(answer).decode()


def _published(answer: Answer | SyncbeatError) -> Published | SyncbeatError:
    if not isinstance(answer, Answer):
        return answer
    known: dict[str, Any] = orjson.loads(answer.text)
    published = Published(
        tuple(known["sequences"]), tuple(Cursor(*head) for head in known["heads"]), known["notification_id"]
    )
    return replace(published, replayed=answer.replayed)
