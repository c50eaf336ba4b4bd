"""Converts the requests and answers of SyncService; `stream_events` has the messages of its streams."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from syncbeat.v1 import core_pb2
from syncbeat.v1 import sync_service_pb2 as pb
from syncbeat_server.errors import AccessDenied, FieldReason, FieldViolation, InvalidRequest
from syncbeat_server.events.publish import Publish, Published
from syncbeat_server.events.trigger import Trigger
from syncbeat_server.ops.tracing.spans import current_traceparent
from syncbeat_server.push.content.templates import Template
from syncbeat_server.rpc.convert.fields import (
    content_hash,
    cursor,
    cursor_message,
    enum_member,
    moment,
    seconds,
    timestamp,
)
from syncbeat_server.rpc.convert.notification import content
from syncbeat_server.rpc.convert.notification_faults import RESERVED_IN_TRIGGER
from syncbeat_server.rpc.pipeline.call_context import Call
from syncbeat_server.sync.model import (
    Activity,
    ActivityState,
    Change,
    DeviceKey,
    FeedPage,
    Network,
    NewChange,
    Poll,
    Priority,
    WriteOutcome,
)

_SILENT_WINDOW_S, _ALERT_WINDOW_S = 30.0, 300.0
_MIN_USER_WINDOW_S = 10.0
_OUTCOMES = {
    None: pb.PUBLISH_OUTCOME_UNSPECIFIED,
    WriteOutcome.WRITTEN: pb.PUBLISH_OUTCOME_WRITTEN,
    WriteOutcome.SUPERSEDED: pb.PUBLISH_OUTCOME_SUPERSEDED,
    WriteOutcome.UNCHANGED: pb.PUBLISH_OUTCOME_UNCHANGED,
}
MAX_PUBLISH_BYTES = 1 << 20
"""The largest request, and the most effects of an event, in octets."""


def device_key(request: pb.GetHintRequest | pb.ReportActivityRequest | pb.WatchHintsRequest, call: Call) -> DeviceKey:
    """Return the device that a request is about."""
    return DeviceKey(call.app(request.app_id), call.user(request.user_id), request.device_id)


def activity(given: pb.Activity) -> Activity:
    """Return what a device reports; what it leaves out is a foreground app on an unknown network."""
    return Activity(
        state=enum_member(ActivityState, pb.ActivityState, "ACTIVITY_STATE_", given.state) or ActivityState.FOREGROUND,
        idle_s=seconds(given.idle_duration),
        network=enum_member(Network, pb.Network, "NETWORK_", given.network) or Network.UNKNOWN,
        battery_low=given.battery_low,
    )


def poll(request: pb.GetHintRequest, call: Call) -> Poll:
    """Return the poll of a request."""
    return Poll(
        device_key(request, call),
        [cursor(given) for given in request.cursors],
        activity(request.activity) if request.HasField("activity") else None,
        request.explain,
    )


def priority(request: pb.BoostScopeRequest) -> Priority:
    """Return the tier of a boost.

    Raises:
        InvalidRequest: the request names none.
    """
    found = enum_member(Priority, pb.Priority, "PRIORITY_", request.priority)
    if found is None:
        raise InvalidRequest(FieldViolation("priority", "required", FieldReason.REQUIRED))
    return found


def change_page(page: FeedPage, hint: pb.Hint) -> pb.ListChangesResponse:
    """Return the answer to ListChanges."""
    return pb.ListChangesResponse(
        changes=map(change_message, page.changes),
        next_cursor=cursor_message(page.next),
        more=page.more,
        reset=page.reset,
        hint=hint,
    )


def change_message(change: Change) -> pb.Change:
    """Return a change as a message."""
    return pb.Change(
        scope=change.scope,
        epoch=change.epoch,
        key=change.key,
        value_json=change.value_json,
        omitted_octets=change.omitted_octets,
        deleted=change.deleted,
        sequence=change.sequence,
        change_time=timestamp(change.changed_at),
        source_time=timestamp(change.source_time),
    )


def publish(request: pb.PublishChangesRequest, call: Call, templates: Mapping[str, Template]) -> Publish:
    """Return the changes and the trigger that a request publishes.

    Raises:
        InvalidRequest: with every fault of its changes, or of what its trigger shows.
        AccessDenied: a user shows a notification, or leaves out somebody else.
    """
    in_users_name = call.is_user or bool(request.user_id)
    user_id = call.user(request.user_id) if in_users_name else None
    trigger = sync_trigger(request.trigger, templates, user_id) if request.HasField("trigger") else None
    return Publish(
        app_id=call.app(request.app_id),
        caller=call.caller,
        changes=_published_changes(request),
        trigger=trigger,
        user_id=user_id,
        request_id=request.request_id,
        content_hash=content_hash(request),
    )


def published(request: pb.PublishChangesRequest, answer: Published) -> pb.PublishChangesResponse:
    """Return the answer to PublishChanges: the new heads, and what became of each change in the request's order."""
    outcomes = answer.outcomes or (None,) * len(answer.sequences)
    return pb.PublishChangesResponse(
        heads=map(cursor_message, answer.heads),
        results=[
            pb.PublishResult(scope=change.scope, key=change.key, sequence=sequence, outcome=_OUTCOMES[outcome])
            for change, sequence, outcome in zip(request.changes, answer.sequences, outcomes, strict=True)
        ],
        notification_id=answer.notification_id,
        replayed=answer.replayed,
    )


def _published_changes(request: pb.PublishChangesRequest) -> tuple[NewChange, ...]:
    faults: list[FieldViolation] = []
    changes = new_changes(request.changes, "changes", faults)
    if request.ByteSize() > MAX_PUBLISH_BYTES:
        faults.append(FieldViolation("changes", f"at most {MAX_PUBLISH_BYTES} bytes in all", FieldReason.TOO_LONG))
    if faults:
        raise InvalidRequest(*faults)
    return changes


def new_changes(given: Iterable[core_pb2.NewChange], path: str, faults: list[FieldViolation]) -> tuple[NewChange, ...]:
    """Return the changes of a request's field, and append to `faults` what is wrong with them."""
    changes = []
    for index, one in enumerate(given):
        if one.deleted == bool(one.merge_patch_json):
            fault = "want either a merge patch or `deleted`, and not both"
            faults.append(FieldViolation(f"{path}[{index}].merge_patch_json", fault, FieldReason.CONFLICT))
        expected = one.expected_sequence if one.HasField("expected_sequence") else None
        source_time = moment(one.source_time) if one.HasField("source_time") else None
        changes.append(NewChange(one.scope, one.key, one.merge_patch_json, one.deleted, expected, source_time))
    return tuple(changes)


def sync_trigger(
    given: core_pb2.SyncTrigger, templates: Mapping[str, Template], user_id: str | None, path: str = "trigger"
) -> Trigger:
    """Return the trigger of a request; a `user_id` acts in its own name, and may wake no more than its own budget.

    Raises:
        InvalidRequest: with every fault of what it shows. `path` is its field.
        AccessDenied: a user shows a notification, or leaves out somebody else.
    """
    faults: list[FieldViolation] = []
    shown = content(given.notification, f"{path}.notification", templates, faults, RESERVED_IN_TRIGGER)
    if faults:
        raise InvalidRequest(*faults)
    if user_id is not None and given.HasField("notification"):
        raise AccessDenied("only a service may show a notification; a user's trigger is silent")
    if user_id is not None and given.exclude_user_id not in ("", user_id):
        raise AccessDenied("a user may leave out itself only")
    default_window = _ALERT_WINDOW_S if shown.is_alert else _SILENT_WINDOW_S
    window = seconds(given.dedupe_window) if given.HasField("dedupe_window") else default_window
    return Trigger(
        type=given.type,
        exclude_user_id=given.exclude_user_id,
        exclude_device_id=given.exclude_device_id,
        content=shown,
        dedupe_window_s=window if user_id is None else max(window, _MIN_USER_WINDOW_S),
        exclude_device_of=user_id,
        traceparent=current_traceparent(),
    )
