"""Converts the requests of WatchHints and the events of its streams."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator

from syncbeat.v1 import sync_service_pb2 as pb
from syncbeat_server.errors import AccessDenied, FieldReason, FieldViolation, InvalidRequest
from syncbeat_server.rpc.call_context import Call
from syncbeat_server.rpc.convert.fields import cursor, cursor_message, duration, seconds
from syncbeat_server.rpc.convert.sync import activity, change_message, device_key
from syncbeat_server.rpc.fastpath.hint_message import hint_message
from syncbeat_server.sync.model import ChangesSent, Checkpoint, Drain, Hint, Reset, ResetAll, StreamEvent
from syncbeat_server.sync.streams.firehose_stream import FirehoseRequest
from syncbeat_server.sync.streams.hint_stream import WatchRequest
from syncbeat_server.sync.streams.lifetime import DEFAULT_HEARTBEAT_S

Recheck = Callable[[], Awaitable[None]]
"""Raises once the caller of a stream is no longer let in."""


def watch_request(request: pb.WatchHintsRequest, call: Call, recheck: Recheck) -> WatchRequest:
    """Return the stream of one user's scopes that a request asks for.

    Raises:
        InvalidRequest: it has a token, which only a stream of all scopes resumes by.
    """
    if request.HasField("token"):
        raise InvalidRequest(FieldViolation("token", "only with all_scopes", FieldReason.CONFLICT))
    device = device_key(request, call)
    return WatchRequest(
        device=device,
        user_id=device.user_id,
        cursors=tuple(map(cursor, request.cursors)),
        activity=activity(request.activity),
        heartbeat_s=seconds(request.heartbeat_interval) or DEFAULT_HEARTBEAT_S,
        expires_at=call.principal.expires_at,
        recheck=recheck,
    )


def firehose_request(request: pb.WatchHintsRequest, call: Call, recheck: Recheck) -> FirehoseRequest:
    """Return the stream of all scopes of an app that a request asks for.

    Raises:
        AccessDenied: a user asks.
        InvalidRequest: it has cursors beside a token.
    """
    app_id = call.app(request.app_id)
    if call.is_user:
        raise AccessDenied("only a service may follow all scopes")
    if request.token and request.cursors:
        raise InvalidRequest(FieldViolation("cursors", "want none beside a token", FieldReason.CONFLICT))
    return FirehoseRequest(
        app_id=app_id,
        token=request.token if request.HasField("token") else None,
        cursors=tuple(map(cursor, request.cursors)),
        activity=activity(request.activity),
        heartbeat_s=seconds(request.heartbeat_interval) or DEFAULT_HEARTBEAT_S,
        expires_at=call.principal.expires_at,
        recheck=recheck,
    )


def event_messages(event: StreamEvent) -> Iterator[pb.WatchHintsResponse]:
    """Yield the messages of an event one by one, so that at most one waits for a slow client in memory."""
    match event:
        case ChangesSent(changes):
            for change in changes:
                yield pb.WatchHintsResponse(change=change_message(change))
        case Hint():
            yield pb.WatchHintsResponse(hint=hint_message(event))
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
    left_s = event.token_remaining_s
    return pb.Checkpoint(
        cursors=map(cursor_message, event.cursors),
        hint=hint_message(event.hint),
        token_remaining=None if left_s is None else duration(left_s),
        token=event.token,
    )
