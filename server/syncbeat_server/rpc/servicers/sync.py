"""SyncService on the wire."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from functools import partial

from google.protobuf.message import Message

from syncbeat.v1 import core_pb2
from syncbeat.v1 import sync_service_pb2 as pb
from syncbeat_server.auth.model import Principal
from syncbeat_server.errors import AccessDenied, FieldViolation, InvalidRequest
from syncbeat_server.events.publish import Publish, Publisher, Trigger
from syncbeat_server.push.content.templates import Template
from syncbeat_server.rpc.call_context import Call
from syncbeat_server.rpc.convert import (
    DEFAULT_PAGE_SIZE,
    RESERVED_OF_TRIGGER,
    Templates,
    content,
    content_hash,
    cursor,
    cursor_message,
    duration,
    enum_member,
    seconds,
    set_duration,
    set_timestamp,
    timestamp,
)
from syncbeat_server.rpc.handler_pipeline import AtOnce
from syncbeat_server.sync.model import (
    Activity,
    ActivityState,
    Change,
    ChangesSent,
    Checkpoint,
    DeviceKey,
    Drain,
    Hint,
    Network,
    NewChange,
    Poll,
    Priority,
    Reset,
    ResetAll,
    StreamEvent,
)
from syncbeat_server.sync.service import SyncService
from syncbeat_server.sync.streams.firehose import Firehose
from syncbeat_server.sync.streams.firehose_stream import FirehoseRequest
from syncbeat_server.sync.streams.hint_stream import WatchRequest
from syncbeat_server.sync.streams.hint_streams import HintStreams
from syncbeat_server.sync.streams.lifetime import DEFAULT_HEARTBEAT_S

_SILENT_WINDOW_S, _SHOWN_WINDOW_S = 30.0, 300.0
_LEAST_USER_WINDOW_S = 10.0
_MAX_PUBLISH_BYTES = 1 << 20
_PRIORITIES = {priority: pb.Priority.Value(f"PRIORITY_{priority}") for priority in Priority}


class SyncServicer:
    """Converts, calls, converts."""

    def __init__(
        self,
        sync: SyncService,
        streams: HintStreams,
        firehose: Firehose,
        publisher: Publisher,
        recheck: Callable[[Principal], Awaitable[None]],
        templates: Templates,
    ) -> None:
        """`recheck` raises when a caller whose stream goes on is no longer let in."""
        self._sync = sync
        self._templates = templates
        self._streams = streams
        self._firehose = firehose
        self._publisher = publisher
        self._recheck = recheck
        self.at_once: Mapping[str, AtOnce] = {"GetHint": self._hint_at_once}

    async def GetHint(self, request: pb.GetHintRequest, call: Call) -> Message:
        """When to ask again."""
        return _hint_answer(await self._sync.hint(_poll(request, call), is_user=call.is_user))

    def _hint_at_once(self, request: pb.GetHintRequest, call: Call) -> Message | None:
        hint = self._sync.try_hint(_poll(request, call))
        return None if hint is None else _hint_answer(hint)

    async def ReportActivity(self, request: pb.ReportActivityRequest, call: Call) -> Message:
        """Remember what a device says of itself."""
        hint = await self._sync.report_activity(
            DeviceKey(call.app(request.app_id), call.user(request.user_id), request.device_id),
            _activity(request.activity),
            is_user=call.is_user,
        )
        return pb.ReportActivityResponse(hint=_hint(hint))

    async def BoostScope(self, request: pb.BoostScopeRequest, call: Call) -> Message:
        """Hold a scope's devices at a tier."""
        priority = enum_member(Priority, pb.Priority, "PRIORITY_", request.priority)
        if priority is None:
            raise InvalidRequest(FieldViolation("priority", "required"))
        app_id, lasting = call.app(request.app_id), seconds(request.duration)
        ends = await self._sync.boost(app_id, request.scope, priority, lasting)
        return pb.BoostScopeResponse(expire_time=timestamp(ends))

    async def ListChanges(self, request: pb.ListChangesRequest, call: Call) -> Message:
        """A page of a feed, and the hint when to ask again."""
        user_id = call.user(request.user_id) if call.is_user else request.user_id or None
        app_id = call.app(request.app_id)
        device = DeviceKey(app_id, user_id, request.device_id) if user_id and request.device_id else None
        page, hint = await self._sync.list_changes(
            app_id, user_id, device, cursor(request.cursor), request.page_size or DEFAULT_PAGE_SIZE
        )
        return pb.ListChangesResponse(
            changes=[_change(change) for change in page.changes],
            next_cursor=cursor_message(page.next),
            more=page.more,
            reset=page.reset,
            hint=_hint(hint),
        )

    async def PublishChanges(self, request: pb.PublishChangesRequest, call: Call) -> Message:
        """Write changes and wake who they concern."""
        app_id = call.app(request.app_id)
        by_user = call.is_user or bool(request.user_id)
        user_id = call.user(request.user_id) if by_user else None
        trigger = None
        if request.HasField("trigger"):
            trigger = _trigger(request.trigger, self._templates(app_id), user_id)
        published = await self._publisher.publish(
            Publish(
                app_id=app_id,
                caller=call.caller,
                changes=_new_changes(request),
                trigger=trigger,
                user_id=user_id,
                request_id=request.request_id,
                content_hash=content_hash(request),
            )
        )
        return pb.PublishChangesResponse(
            heads=[cursor_message(head) for head in published.heads],
            results=[
                pb.PublishResult(scope=change.scope, key=change.key, sequence=sequence)
                for change, sequence in zip(request.changes, published.sequences, strict=True)
            ],
            notification_id=published.notification_id,
            replayed=published.replayed,
        )

    async def WatchHints(self, request: pb.WatchHintsRequest, call: Call) -> AsyncGenerator[bytes, None]:
        """The stream of a device, or of a service that follows everything."""
        events = self._all_scopes(request, call) if request.all_scopes else self._user_scopes(request, call)
        try:
            async for event in events:
                for message in _messages(event):
                    yield message.SerializeToString()
        finally:
            await events.aclose()

    def _user_scopes(self, request: pb.WatchHintsRequest, call: Call) -> AsyncGenerator[StreamEvent, None]:
        if request.HasField("token"):
            raise InvalidRequest(FieldViolation("token", "only with all_scopes"))
        user_id = call.user(request.user_id)
        return self._streams.watch(
            WatchRequest(
                device=DeviceKey(call.app(request.app_id), user_id, request.device_id),
                user_id=user_id,
                cursors=tuple(cursor(given) for given in request.cursors),
                activity=_activity(request.activity),
                heartbeat_s=seconds(request.heartbeat_interval) or DEFAULT_HEARTBEAT_S,
                expires_at=call.principal.expires_at,
                recheck=partial(self._recheck, call.principal),
            )
        )

    def _all_scopes(self, request: pb.WatchHintsRequest, call: Call) -> AsyncGenerator[StreamEvent, None]:
        app_id = call.app(request.app_id)
        if call.is_user:
            raise AccessDenied("only a service may follow all scopes")
        if request.token and request.cursors:
            raise InvalidRequest(FieldViolation("cursors", "want none beside a token"))
        return self._firehose.watch(
            FirehoseRequest(
                app_id=app_id,
                token=request.token if request.HasField("token") else None,
                cursors=tuple(cursor(given) for given in request.cursors),
                activity=_activity(request.activity),
                heartbeat_s=seconds(request.heartbeat_interval) or DEFAULT_HEARTBEAT_S,
                expires_at=call.principal.expires_at,
                recheck=partial(self._recheck, call.principal),
            )
        )


def _activity(given: pb.Activity) -> Activity:
    return Activity(
        state=enum_member(ActivityState, pb.ActivityState, "ACTIVITY_STATE_", given.state) or ActivityState.FOREGROUND,
        idle_s=seconds(given.idle_duration),
        network=enum_member(Network, pb.Network, "NETWORK_", given.network) or Network.UNKNOWN,
        battery_low=given.battery_low,
    )


def _poll(request: pb.GetHintRequest, call: Call) -> Poll:
    return Poll(
        DeviceKey(call.app(request.app_id), call.user(request.user_id), request.device_id),
        [cursor(given) for given in request.cursors],
        _activity(request.activity) if request.HasField("activity") else None,
        request.explain,
    )


def _hint_answer(hint: Hint) -> pb.GetHintResponse:
    answer = pb.GetHintResponse()
    _fill_hint(answer.hint, hint)
    return answer


def _hint(hint: Hint) -> pb.Hint:
    made = pb.Hint()
    _fill_hint(made, hint)
    return made


def _fill_hint(made: pb.Hint, hint: Hint) -> None:
    # Filled in place: half the time of making the parts and copying them into the whole.
    set_duration(made.poll_interval, hint.poll_interval_s)
    made.priority = _PRIORITIES[hint.priority]
    set_timestamp(made.next_poll_time, hint.next_poll_at)
    made.changed = hint.changed
    add_head = made.heads.add
    for head in hint.heads:
        add_head(scope=head.scope, epoch=head.epoch, sequence=head.sequence)
    made.valid_duration.seconds = int(hint.valid_s)
    made.prefer_stream = hint.prefer_stream
    made.explanation = hint.explanation
    made.more_scopes = hint.more_scopes


def _change(change: Change) -> pb.Change:
    return pb.Change(
        scope=change.scope,
        epoch=change.epoch,
        key=change.key,
        value_json=change.value_json,
        omitted_octets=change.omitted_octets,
        deleted=change.deleted,
        sequence=change.sequence,
        change_time=timestamp(change.changed_at),
    )


def _new_changes(request: pb.PublishChangesRequest) -> tuple[NewChange, ...]:
    changes = []
    faults = []
    for index, given in enumerate(request.changes):
        if given.deleted == bool(given.merge_patch_json):
            path = f"changes[{index}].merge_patch_json"
            faults.append(FieldViolation(path, "want either a merge patch or `deleted`, and not both"))
        expected = given.expected_sequence if given.HasField("expected_sequence") else None
        changes.append(NewChange(given.scope, given.key, given.merge_patch_json, given.deleted, expected))
    if request.ByteSize() > _MAX_PUBLISH_BYTES:
        faults.append(FieldViolation("changes", f"at most {_MAX_PUBLISH_BYTES} bytes in all"))
    if faults:
        raise InvalidRequest(*faults)
    return tuple(changes)


def _trigger(given: core_pb2.SyncTrigger, templates: Mapping[str, Template], user_id: str | None) -> Trigger:
    """Return the trigger of a request; with a `user_id`, in that user's name, to spend no more than its own."""
    faults: list[FieldViolation] = []
    shown = content(given.notification, "trigger.notification", templates, faults, RESERVED_OF_TRIGGER)
    if faults:
        raise InvalidRequest(*faults)
    if user_id is not None and given.HasField("notification"):
        raise AccessDenied("only a service may show a notification; a user's trigger is silent")
    if user_id is not None and given.exclude_user_id not in ("", user_id):
        raise AccessDenied("a user may leave out itself only")
    default_window = _SHOWN_WINDOW_S if shown.alerts else _SILENT_WINDOW_S
    window = seconds(given.dedupe_window) if given.HasField("dedupe_window") else default_window
    return Trigger(
        type=given.type,
        exclude_user_id=given.exclude_user_id,
        exclude_device_id=given.exclude_device_id,
        content=shown,
        dedupe_window_s=window if user_id is None else max(window, _LEAST_USER_WINDOW_S),
        exclude_device_of=user_id,
    )


def _messages(event: StreamEvent) -> Iterator[pb.WatchHintsResponse]:
    # One after the other: what a client does not take yet is not there twice.
    match event:
        case ChangesSent(changes):
            for change in changes:
                yield pb.WatchHintsResponse(change=_change(change))
        case Hint():
            yield pb.WatchHintsResponse(hint=_hint(event))
        case Checkpoint():
            yield pb.WatchHintsResponse(checkpoint=_checkpoint(event))
        case Reset(head, refetch_delay_s):
            reset = pb.Reset(scope=head.scope, head=cursor_message(head), refetch_delay=duration(refetch_delay_s))
            yield pb.WatchHintsResponse(reset=reset)
        case ResetAll(token, refetch_delay_s):
            yield pb.WatchHintsResponse(reset=pb.Reset(token=token, refetch_delay=duration(refetch_delay_s)))
        case Drain(reconnect_delay_s):
            yield pb.WatchHintsResponse(drain=pb.Drain(reconnect_delay=duration(reconnect_delay_s)))


def _checkpoint(event: Checkpoint) -> pb.Checkpoint:
    left = event.token_remaining_s
    return pb.Checkpoint(
        cursors=[cursor_message(at) for at in event.cursors],
        hint=_hint(event.hint),
        token_remaining=None if left is None else duration(left),
        token=event.token,
    )
