"""Converts the messages of PushService."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

from syncbeat.v1 import core_pb2
from syncbeat.v1 import push_service_pb2 as pb
from syncbeat_server.errors import FieldReason, FieldViolation, InvalidRequest
from syncbeat_server.ops.tracing.spans import current_traceparent
from syncbeat_server.push.accept import new_notification_id
from syncbeat_server.push.content.templates import Template
from syncbeat_server.push.model import (
    DEFAULT_TTL_S,
    Acceptance,
    Delivery,
    DeliveryFilter,
    DeliveryState,
    Kind,
    Lane,
    NewNotification,
    Notification,
    Target,
)
from syncbeat_server.rpc.convert.fields import enum_member, seconds, timestamp, uuid_text
from syncbeat_server.rpc.convert.notification import content, content_message
from syncbeat_server.rpc.pipeline.call_context import Call

_DEFAULT_WINDOW_S = 300.0
_MAX_DELAY_S = 366 * 86_400.0


def new_notification(
    request: pb.SendNotificationRequest, call: Call, templates: Mapping[str, Template], now: datetime
) -> NewNotification:
    """Return the notification that a request asks to send, accepted at `now`.

    Raises:
        InvalidRequest: with every fault of its content, schedule and time to live.
    """
    faults: list[FieldViolation] = []
    due_at = _due_at(request, now, faults)
    shown = content(request.notification, "notification", templates, faults)
    if not (shown.visible or shown.data or shown.badge_only):
        faults.append(
            FieldViolation("notification", "want a title, a body, a template, data or a badge", FieldReason.REQUIRED)
        )
    ttl_s = seconds(request.ttl) if request.HasField("ttl") else DEFAULT_TTL_S
    if 0.0 < ttl_s < 1.0:
        faults.append(FieldViolation("ttl", "want 0, for now or never, or 1 s to 28 days", FieldReason.OUT_OF_RANGE))
    if faults:
        raise InvalidRequest(*faults)
    lane = enum_member(Lane, core_pb2.PushPriority, "PUSH_PRIORITY_", request.priority)
    return NewNotification(
        app_id=call.app(request.app_id),
        notification_id=new_notification_id(now),
        kind=Kind.MESSAGE,
        caller=call.caller,
        content=shown,
        targets=_targets(request),
        type=request.type,
        dedupe_key=request.dedupe_key,
        dedupe_window_s=seconds(request.dedupe_window) if request.HasField("dedupe_window") else _DEFAULT_WINDOW_S,
        collapse_key=request.collapse_key,
        lane=Lane.NORMAL if lane is None else lane,
        critical=request.critical,
        due_at=due_at,
        ttl_s=ttl_s,
        patient=not request.HasField("ttl"),
        traceparent=current_traceparent(),
    )


def accepted(answer: Acceptance) -> pb.SendNotificationResponse:
    """Return the answer to SendNotification."""
    return pb.SendNotificationResponse(
        notification_id=answer.notification_id,
        delivery_count=answer.delivery_count,
        suppressed_count=answer.suppressed_count,
        replayed=answer.replayed,
    )


def notification(found: Notification) -> pb.GetNotificationResponse:
    """Return the answer to GetNotification, with the count of deliveries in each state."""
    return pb.GetNotificationResponse(
        notification_id=found.notification_id,
        kind=pb.NotificationKind.Value(f"NOTIFICATION_KIND_{found.kind}"),
        notification=content_message(found.content),
        type=found.type,
        dedupe_key=found.dedupe_key,
        collapse_key=found.collapse_key,
        priority=core_pb2.PushPriority.Value(f"PUSH_PRIORITY_{found.lane.name}"),
        create_time=timestamp(found.created_at),
        due_time=timestamp(found.due_at),
        expire_time=timestamp(found.expires_at),
        counts=[
            pb.DeliveryCount(state=state_number(state), count=count) for state, count in sorted(found.counts.items())
        ],
        expanding=found.expanding,
        resolved=found.resolved,
    )


def delivery_filter(given: pb.DeliveryFilter) -> DeliveryFilter:
    """Return the filter of a request.

    Raises:
        InvalidRequest: its notification id is none of ours.
    """
    return DeliveryFilter(
        uuid_text(given.notification_id, "filter.notification_id") if given.notification_id else "",
        given.user_id,
        given.device_id,
        enum_member(DeliveryState, pb.DeliveryState, "DELIVERY_STATE_", given.state),
    )


def redrive_filter(given: pb.DeliveryFilter) -> DeliveryFilter:
    """Return the filter of a request to send dead deliveries again.

    Raises:
        InvalidRequest: it asks for deliveries in another state, or names nothing to choose by.
    """
    wanted = delivery_filter(given)
    if wanted.state not in (None, DeliveryState.DEAD):
        raise InvalidRequest(
            FieldViolation("filter.state", "only DEAD deliveries are sent again", FieldReason.OUT_OF_RANGE)
        )
    if wanted == DeliveryFilter():
        raise InvalidRequest(
            FieldViolation("filter", "want something to choose by; the state DEAD means all", FieldReason.REQUIRED)
        )
    return wanted


def watch_filter(request: pb.WatchDeliveriesRequest) -> DeliveryFilter:
    """Return the deliveries that a request watches.

    Raises:
        InvalidRequest: it names neither a notification nor a user.
    """
    if not (request.notification_id or request.user_id):
        raise InvalidRequest(FieldViolation("notification_id", "want it or user_id", FieldReason.REQUIRED))
    notification_id = uuid_text(request.notification_id, "notification_id") if request.notification_id else ""
    return DeliveryFilter(notification_id, request.user_id)


def delivery_list(deliveries: Sequence[Delivery], next_page_token: str) -> pb.ListDeliveriesResponse:
    """Return the answer to ListDeliveries."""
    return pb.ListDeliveriesResponse(deliveries=map(delivery_message, deliveries), next_page_token=next_page_token)


def delivery_message(delivery: Delivery) -> pb.Delivery:
    """Return a delivery as a message."""
    reason = delivery.reason or "UNSPECIFIED"
    return pb.Delivery(
        delivery_id=delivery.delivery_id,
        notification_id=delivery.notification_id,
        user_id=delivery.user_id,
        device_id=delivery.device_id,
        scope=delivery.scope,
        state=state_number(delivery.state),
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


def state_number(state: DeliveryState) -> pb.DeliveryState.ValueType:
    """Return the enum number of a delivery's state."""
    return pb.DeliveryState.Value(f"DELIVERY_STATE_{state}")


def _due_at(request: pb.SendNotificationRequest, now: datetime, faults: list[FieldViolation]) -> datetime | None:
    """Return the schedule time; None for now. The database compares it by its own clock: our clocks may differ."""
    if not request.HasField("schedule_time"):
        return None
    given = request.schedule_time
    ahead_s = given.seconds + given.nanos / 1e9 - now.timestamp()
    if ahead_s > _MAX_DELAY_S:
        faults.append(FieldViolation("schedule_time", "at most 366 days ahead", FieldReason.OUT_OF_RANGE))
    if abs(ahead_s) > _MAX_DELAY_S:
        return now  # long past, or refused above; Python and PostgreSQL may not know such a year
    return datetime.fromtimestamp(given.seconds, UTC) + timedelta(microseconds=given.nanos // 1_000)


def _targets(request: pb.SendNotificationRequest) -> tuple[Target, ...]:
    match request.WhichOneof("target"):
        case "user_ids":
            return tuple(Target(user_id=user_id) for user_id in request.user_ids.ids)
        case "device_ids":
            return tuple(Target(user_id=ref.user_id, device_id=ref.device_id) for ref in request.device_ids.refs)
        case _:
            return (Target(scope=request.scope),)
