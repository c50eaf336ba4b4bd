"""PushService on the wire."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Iterable
from datetime import UTC, datetime, timedelta

from google.protobuf.message import Message

from syncbeat.v1 import core_pb2
from syncbeat.v1 import push_service_pb2 as pb
from syncbeat_server.clock import Clock
from syncbeat_server.errors import FieldViolation, InvalidRequest
from syncbeat_server.push.accept import new_notification_id
from syncbeat_server.push.delivery.watch import DeliveryWatches
from syncbeat_server.push.model import (
    Content,
    Delivery,
    DeliveryFilter,
    DeliveryState,
    Kind,
    Lane,
    NewNotification,
    Target,
)
from syncbeat_server.push.service import PushService
from syncbeat_server.rpc.call_context import Call
from syncbeat_server.rpc.convert import (
    Templates,
    content,
    content_hash,
    enum_member,
    next_page_token,
    page_size,
    page_start,
    seconds,
    timestamp,
)

_DEFAULT_WINDOW_S = 300.0
_DEFAULT_TTL_S = 3600.0
_MAX_DELAY_S = 366 * 86_400.0


class PushServicer:
    """Converts, calls, converts."""

    def __init__(self, push: PushService, watches: DeliveryWatches, templates: Templates, clock: Clock) -> None:
        self._push = push
        self._watches = watches
        self._templates = templates
        self._clock = clock

    async def SendNotification(self, request: pb.SendNotificationRequest, call: Call) -> Message:
        """Accept a notification."""
        app_id = call.app(request.app_id)
        faults: list[FieldViolation] = []
        due_at = self._due_at(request, faults)
        shown = content(request.notification, "notification", self._templates(app_id), faults)
        if not (shown.visible or shown.data or shown.badge_only):
            faults.append(FieldViolation("notification", "want a title, a body, a template, data or a badge"))
        ttl_s = seconds(request.ttl) if request.HasField("ttl") else _DEFAULT_TTL_S
        if 0.0 < ttl_s < 1.0:
            faults.append(FieldViolation("ttl", "want 0, for now or never, or 1 s to 28 days"))
        if faults:
            raise InvalidRequest(*faults)
        given_window = request.HasField("dedupe_window")
        lane = enum_member(Lane, core_pb2.PushPriority, "PUSH_PRIORITY_", request.priority)
        notification = NewNotification(
            app_id=app_id,
            notification_id=new_notification_id(self._clock.now()),
            kind=Kind.MESSAGE,
            caller=call.caller,
            content=shown,
            targets=_targets(request),
            type=request.type,
            dedupe_key=request.dedupe_key,
            dedupe_window_s=seconds(request.dedupe_window) if given_window else _DEFAULT_WINDOW_S,
            collapse_key=request.collapse_key,
            lane=Lane.NORMAL if lane is None else lane,
            critical=request.critical,
            due_at=due_at,
            ttl_s=ttl_s,
            patient=not request.HasField("ttl"),
        )
        accepted = await self._push.send(notification, request.request_id, content_hash(request))
        return pb.SendNotificationResponse(
            notification_id=accepted.notification_id,
            delivery_count=accepted.delivery_count,
            suppressed_count=accepted.suppressed_count,
            replayed=accepted.replayed,
        )

    async def GetNotification(self, request: pb.GetNotificationRequest, call: Call) -> Message:
        """A notification and where its deliveries are."""
        found = await self._push.notification(
            call.app(request.app_id), _uuid(request.notification_id, "notification_id")
        )
        return pb.GetNotificationResponse(
            notification_id=found.notification_id,
            kind=pb.NotificationKind.Value(f"NOTIFICATION_KIND_{found.kind}"),
            notification=_content(found.content),
            type=found.type,
            dedupe_key=found.dedupe_key,
            collapse_key=found.collapse_key,
            priority=core_pb2.PushPriority.Value(f"PUSH_PRIORITY_{found.lane.name}"),
            create_time=timestamp(found.created_at),
            due_time=timestamp(found.due_at),
            expire_time=timestamp(found.expires_at),
            counts=_counts(found.counts.items()),
            expanding=found.expanding,
            resolved=found.resolved,
        )

    async def ListDeliveries(self, request: pb.ListDeliveriesRequest, call: Call) -> Message:
        """Deliveries that fit a filter."""
        app_id = call.app(request.app_id)
        given = request.filter
        asked = (app_id, given.notification_id, given.user_id, given.device_id, str(given.state))
        wanted = _filter(given)
        size, after = page_size(request), page_start(request, call, *asked)
        found = await self._push.deliveries(
            app_id,
            wanted,
            after if after is None else _uuid(after, "page_token"),
            size + 1,
        )
        more = len(found) > size
        return pb.ListDeliveriesResponse(
            deliveries=[_delivery(delivery) for delivery in found[:size]],
            next_page_token=next_page_token(call, found[size - 1].delivery_id if more else None, *asked),
        )

    async def WatchDeliveries(self, request: pb.WatchDeliveriesRequest, call: Call) -> AsyncGenerator[bytes, None]:
        """The deliveries of a notification or a user, as they change."""
        app_id = call.app(request.app_id)
        if not (request.notification_id or request.user_id):
            raise InvalidRequest(FieldViolation("notification_id", "want it or user_id"))
        notification_id = _uuid(request.notification_id, "notification_id") if request.notification_id else ""
        pages = self._watches.watch(app_id, DeliveryFilter(notification_id, request.user_id))
        try:
            async for page in pages:
                for delivery in page:
                    yield pb.WatchDeliveriesResponse(delivery=_delivery(delivery)).SerializeToString()
        finally:
            await pages.aclose()

    async def AcknowledgeDelivery(self, request: pb.AcknowledgeDeliveryRequest, call: Call) -> Message:
        """A device has a push."""
        opened = request.kind == pb.ACKNOWLEDGE_KIND_OPENED
        state = await self._push.acknowledge(request.ack_token, opened=opened)
        return pb.AcknowledgeDeliveryResponse(state=pb.DeliveryState.Value(f"DELIVERY_STATE_{state}"))

    async def CancelNotification(self, request: pb.CancelNotificationRequest, call: Call) -> Message:
        """Call back what is not sent yet."""
        app_id, notification_id = call.app(request.app_id), _uuid(request.notification_id, "notification_id")
        cancelled = await self._push.cancel(app_id, notification_id)
        return pb.CancelNotificationResponse(cancelled_count=cancelled)

    async def RedriveDeliveries(self, request: pb.RedriveDeliveriesRequest, call: Call) -> Message:
        """Try again what was given up."""
        app_id, wanted = call.app(request.app_id), _filter(request.filter)
        if wanted.state not in (None, DeliveryState.DEAD):
            raise InvalidRequest(FieldViolation("filter.state", "only DEAD deliveries are sent again"))
        if wanted == DeliveryFilter():
            raise InvalidRequest(FieldViolation("filter", "want something to choose by; the state DEAD means all"))
        count, replayed = await self._push.redrive(
            app_id, call.caller, wanted, request.request_id, content_hash(request)
        )
        return pb.RedriveDeliveriesResponse(redriven_count=count, replayed=replayed)

    def _due_at(self, request: pb.SendNotificationRequest, faults: list[FieldViolation]) -> datetime | None:
        """When it is due, which the database holds against its own clock. How far ahead is no matter of seconds."""
        if not request.HasField("schedule_time"):
            return None
        given, now = request.schedule_time, self._clock.now()
        ahead_s = given.seconds + given.nanos / 1e9 - now.timestamp()
        if ahead_s > _MAX_DELAY_S:
            faults.append(FieldViolation("schedule_time", "at most 366 days ahead"))
        if abs(ahead_s) > _MAX_DELAY_S:
            return now  # long over, or refused; perhaps of a year that Python or PostgreSQL do not know
        return datetime.fromtimestamp(given.seconds, UTC) + timedelta(microseconds=given.nanos // 1_000)


def _targets(request: pb.SendNotificationRequest) -> tuple[Target, ...]:
    match request.WhichOneof("target"):
        case "user_ids":
            return tuple(Target(user_id=user_id) for user_id in request.user_ids.ids)
        case "device_ids":
            return tuple(Target(user_id=ref.user_id, device_id=ref.device_id) for ref in request.device_ids.refs)
        case _:
            return (Target(scope=request.scope),)


def _filter(given: pb.DeliveryFilter) -> DeliveryFilter:
    return DeliveryFilter(
        _uuid(given.notification_id, "filter.notification_id") if given.notification_id else "",
        given.user_id,
        given.device_id,
        enum_member(DeliveryState, pb.DeliveryState, "DELIVERY_STATE_", given.state),
    )


def _uuid(text: str, path: str) -> str:
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise InvalidRequest(FieldViolation(path, "not an id that this service gave out")) from None


def _content(shown: Content) -> core_pb2.Notification:
    return core_pb2.Notification(
        title=shown.title,
        body=shown.body,
        data=shown.data,
        image_url=shown.image_url,
        sound=shown.sound,
        badge=shown.badge,
        click_action=shown.click_action,
        channel_id=shown.channel_id,
        template=shown.template,
        variables=shown.variables,
    )


def _counts(counts: Iterable[tuple[DeliveryState, int]]) -> list[pb.DeliveryCount]:
    return [
        pb.DeliveryCount(state=pb.DeliveryState.Value(f"DELIVERY_STATE_{state}"), count=count)
        for state, count in sorted(counts)
    ]


def _delivery(delivery: Delivery) -> pb.Delivery:
    reason = delivery.reason or "UNSPECIFIED"
    return pb.Delivery(
        delivery_id=delivery.delivery_id,
        notification_id=delivery.notification_id,
        user_id=delivery.user_id,
        device_id=delivery.device_id,
        scope=delivery.scope,
        state=pb.DeliveryState.Value(f"DELIVERY_STATE_{delivery.state}"),
        reason=pb.DeliveryReason.Value(f"DELIVERY_REASON_{reason}"),
        attempts=delivery.attempts,
        create_time=timestamp(delivery.created_at),
        update_time=timestamp(delivery.updated_at),
        due_time=timestamp(delivery.due_at),
        expire_time=timestamp(delivery.expires_at),
        send_time=timestamp(delivery.sent_at),
        receive_time=timestamp(delivery.received_at),
        open_time=timestamp(delivery.opened_at),
        possibly_duplicated=delivery.ambiguous,
    )
