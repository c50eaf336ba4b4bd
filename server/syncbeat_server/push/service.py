"""Serves callers: accepts their notifications, reports and cancels them, and takes devices' acknowledgements."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

import orjson

from syncbeat_server.audit.model import AuditAction, app_subject, user_subject
from syncbeat_server.audit.record import record
from syncbeat_server.directory.store.members import known_scopes
from syncbeat_server.errors import AccessDenied, NotFound, SyncbeatError, TokenFault, TokenInvalid
from syncbeat_server.ops.tracing.spans import SpanKind, current_span
from syncbeat_server.push.accept import accept
from syncbeat_server.push.content.ack_token import claimed_app, verify_ack_token
from syncbeat_server.push.model import (
    QUEUE_ATTRIBUTES,
    Acceptance,
    Delivery,
    DeliveryFilter,
    DeliveryState,
    NewNotification,
    Notification,
    QueueDepth,
)
from syncbeat_server.push.store import lifecycle, notifications, queue_figures
from syncbeat_server.storage import idempotency
from syncbeat_server.storage.batcher import Batcher, BatchRule
from syncbeat_server.storage.idempotency import Answer, RequestKey
from syncbeat_server.storage.idempotency_cache import IdempotencyCache
from syncbeat_server.storage.postgres.database import Connection, Database

_SEND, _REDRIVE = "SendNotification", "RedriveDeliveries"
_MOST_COUNTED, _MOST_JOBS = 10_000, 1_000  # rows that a count of the queue reads: milliseconds, however long it is


@dataclass(frozen=True)
class _Send:
    notification: NewNotification
    request: RequestKey | None


class PushService:
    """Accepts, reports, cancels and redrives notifications, and records acknowledgements."""

    def __init__(
        self,
        database: Database,
        replays: IdempotencyCache,
        secret_of: Callable[[str], Awaitable[bytes | None]],
        on_accepted: Callable[[], None],
    ) -> None:
        """Take what returns an app's secret, None if the app is not configured.

        `on_accepted` is called after each commit that made deliveries; it wakes the workers.
        """
        self._database = database
        self._secret_of = secret_of
        self._replays = replays
        self._on_accepted = on_accepted
        self._sends: Batcher[_Send, Acceptance] = Batcher(self._write, BatchRule(abandons=True))

    async def send(self, notification: NewNotification, request_id: str, content_hash: bytes) -> Acceptance:
        """Accept a notification. A replay of `request_id` is answered as the first call was; '' is never a replay.

        Raises:
            RequestIdReused: the request_id came before with other content.
            RequestInFlight: the first call with it has not ended.
            NotFound: it is for a scope that does not exist.
        """
        request = RequestKey.of(notification.app_id, notification.caller, _SEND, request_id, content_hash)
        if request is None:
            return await self._sends.submit(_Send(notification, None))
        secret = await self._secret_of(notification.app_id)
        if secret is None:
            raise AccessDenied("this caller may not act for this app")
        known = await self._replays.find(request, secret)
        if known is not None:
            return replace(Acceptance(**orjson.loads(known)), replayed=True)
        accepted = await self._sends.submit(_Send(notification, request))
        self._replays.keep(request, secret, orjson.dumps(replace(accepted, replayed=False)))
        return accepted

    async def notification(self, app_id: str, notification_id: str) -> Notification:
        """Return a notification with its counts by state. Raises NotFound."""
        async with self._database.transaction() as conn:
            found = await notifications.find_notification(conn, app_id, notification_id)
        if found is None:
            raise NotFound("there is no such notification")
        return found

    async def deliveries(self, app_id: str, wanted: DeliveryFilter, after: str | None, limit: int) -> list[Delivery]:
        """Return the deliveries that fit the filter, oldest first, after a delivery id."""
        async with self._database.connection() as conn:
            return await notifications.list_deliveries(conn, app_id, wanted, after, limit)

    async def cancel(self, app_id: str, notification_id: str) -> int:
        """Cancel the deliveries of a notification that are not sent yet, and return their number. Raises NotFound."""
        async with self._database.transaction() as conn:
            cancelled = await lifecycle.cancel(conn, app_id, notification_id)
        if cancelled is None:
            raise NotFound("there is no such notification")
        return cancelled

    async def queue_depth(self, app_id: str) -> QueueDepth:
        """Return how many deliveries of an app are not done, as far as they are counted. Raises DependencyDown."""
        async with self._database.connection() as conn:
            return await queue_figures.queue_depth(conn, app_id, _MOST_COUNTED, _MOST_JOBS)

    async def redrive(
        self, app_id: str, caller: str, wanted: DeliveryFilter, request_id: str, content_hash: bytes
    ) -> tuple[int, bool]:
        """Make DEAD deliveries PENDING again. Returns their number, and True if the call was a replay of `request_id`.

        Raises:
            RequestIdReused: the request_id came before with other content.
            RequestInFlight: the first call with it has not ended.
        """
        request = RequestKey.of(app_id, caller, _REDRIVE, request_id, content_hash)
        async with self._database.transaction() as conn:

            async def carry_out(indexes: Sequence[int]) -> list[str | SyncbeatError]:
                return [str(await _redrive(conn, app_id, wanted)) for _ in indexes]

            (answer,) = await idempotency.answer_once(conn, [request], carry_out)
        if not isinstance(answer, Answer):
            raise answer
        self._on_accepted()
        return int(answer.text), answer.replayed

    async def acknowledge(self, token: str, *, opened: bool) -> DeliveryState:
        """Record that a device has received or opened a push, and return the state of its delivery.

        Raises:
            TokenInvalid: the token was not made by us, or its delivery is not stored any more.
        """
        app_id = claimed_app(token)
        secret = await self._secret_of(app_id)
        delivery_id = None if secret is None else verify_ack_token(secret, token)
        if delivery_id is None:
            raise TokenInvalid("not an ack token of ours", TokenFault.ACK_TOKEN, "not made here")
        async with self._database.connection() as conn:
            receipt = await lifecycle.acknowledge(conn, app_id, delivery_id, opened=opened)
        if receipt is None:
            raise TokenInvalid(
                "its delivery is not kept any more", TokenFault.ACK_TOKEN, "its delivery is not kept any more"
            )
        _link_receipt(delivery_id, receipt.traceparent)
        return receipt.state

    async def _write(self, sends: Sequence[_Send]) -> list[Acceptance | SyncbeatError]:
        async with self._database.transaction() as conn:
            answers = await self._answer(conn, sends)
        self._on_accepted()
        return answers

    @staticmethod
    async def _answer(conn: Connection, sends: Sequence[_Send]) -> list[Acceptance | SyncbeatError]:
        async def carry_out(indexes: Sequence[int]) -> list[str | SyncbeatError]:
            asked = [sends[i].notification for i in indexes]
            good = await _with_known_scopes(conn, asked)
            accepted = {answer.notification_id: answer for answer in await accept(conn, good)}
            return [_as_json(accepted.get(notification.notification_id)) for notification in asked]

        answers = await idempotency.answer_once(conn, [send.request for send in sends], carry_out)
        return [
            replace(Acceptance(**orjson.loads(answer.text)), replayed=answer.replayed)
            if isinstance(answer, Answer)
            else answer
            for answer in answers
        ]


def _link_receipt(delivery_id: str, attempt: str) -> None:
    """Link an acknowledgement to the attempt that it answers, by a span that is recorded if the attempt is.

    The call's own was sampled before anybody knew what it is about. Where it was left out, one of its own stands for
    it: the conventions' `settle` (ADR 177).
    """
    span = current_span.get()
    if span is None or not attempt:
        return
    if span.is_recorded:
        span.link(attempt)
        return
    attributes = {
        **QUEUE_ATTRIBUTES,
        "messaging.operation.name": "acknowledge",
        "messaging.operation.type": "settle",
        "messaging.message.id": delivery_id,
    }
    span.detached("acknowledge deliveries", SpanKind.CLIENT, attributes, [attempt]).end()


async def _redrive(conn: Connection, app_id: str, wanted: DeliveryFilter) -> int:
    count = await lifecycle.redrive(conn, app_id, wanted)
    subject = user_subject(wanted.user_id) if wanted.user_id else app_subject(app_id)
    await record(
        conn,
        app_id,
        AuditAction.DELIVERIES_REDRIVEN,
        subject,
        notification_id=wanted.notification_id,
        device_id=wanted.device_id,
        count=count,
    )
    return count


async def _with_known_scopes(conn: Connection, asked: Sequence[NewNotification]) -> list[NewNotification]:
    wanted = [{(n.app_id, target.scope) for target in n.targets if target.scope is not None} for n in asked]
    named = set().union(*wanted)
    known = await known_scopes(conn, named) if named else set()
    return [notification for notification, scopes in zip(asked, wanted, strict=True) if scopes <= known]


def _as_json(accepted: Acceptance | None) -> str | SyncbeatError:
    return NotFound("there is no such scope") if accepted is None else orjson.dumps(accepted).decode()
