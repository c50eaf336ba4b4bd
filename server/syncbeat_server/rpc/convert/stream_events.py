"""Converts the requests of WatchHints and the events of its streams."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from weakref import WeakKeyDictionary

from syncbeat.v1 import sync_service_pb2 as pb
from syncbeat_server.errors import AccessDenied, FieldReason, FieldViolation, InvalidRequest
from syncbeat_server.rpc.convert.fields import cursor, cursor_message, duration, seconds
from syncbeat_server.rpc.convert.sync import activity, change_message, device_key
from syncbeat_server.rpc.fastpath.hint_message import hint_message
from syncbeat_server.rpc.pipeline.call_context import Call
from syncbeat_server.sync.model import Change, ChangesSent, Checkpoint, Drain, Hint, Reset, ResetAll, StreamEvent
from syncbeat_server.sync.streams.drain_and_lifetime import DEFAULT_HEARTBEAT_S
from syncbeat_server.sync.streams.firehose_stream import FirehoseRequest
from syncbeat_server.sync.streams.hint_stream import WatchRequest

_MAX_HELD_OCTETS = 4 << 20  # beside the largest page, which is of 1 MiB
_MAX_HELD_CHANGES = 1_000

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


class EventEncoder:
    """Encodes events, and each change that many streams share once.

    Streams that are woken together are given the same `Change` objects (`sync/streams/read_ahead.py`), which are the
    keys here, since nothing else tells a change from one of the same sequence before a restore. An encoding goes with
    the last page that has its change.
    """

    def __init__(self) -> None:
        self._changes: WeakKeyDictionary[Change, bytes] = WeakKeyDictionary()
        self._held = 0  # at most: octets since the last clearing, of which some are gone with their changes

    def encode(self, event: StreamEvent) -> Iterator[bytes]:
        """Yield the messages of an event one by one, so that at most one waits for a slow client in memory."""
        if isinstance(event, ChangesSent):
            return map(self.encode_change, event.changes)
        return iter((_message(event).SerializeToString(),))

    def encode_change(self, change: Change) -> bytes:
        """Return the message of a change."""
        encoded = self._changes.get(change)
        if encoded is None:
            encoded = pb.WatchHintsResponse(change=change_message(change)).SerializeToString()
            self._held += len(encoded)
            if self._held > _MAX_HELD_OCTETS or len(self._changes) >= _MAX_HELD_CHANGES:
                self._changes.clear()
                self._held = len(encoded)
            self._changes[change] = encoded
        return encoded


def _message(event: Hint | Checkpoint | Reset | ResetAll | Drain) -> pb.WatchHintsResponse:
    match event:
        case Hint():
            return pb.WatchHintsResponse(hint=hint_message(event))
        case Checkpoint():
            return pb.WatchHintsResponse(checkpoint=_checkpoint(event))
        case Reset(head, refetch_delay_s):
            reset = pb.Reset(scope=head.scope, head=cursor_message(head), refetch_delay=duration(refetch_delay_s))
            return pb.WatchHintsResponse(reset=reset)
        case ResetAll(token, refetch_delay_s):
            return pb.WatchHintsResponse(reset=pb.Reset(token=token, refetch_delay=duration(refetch_delay_s)))
        case Drain(reconnect_delay_s):
            return pb.WatchHintsResponse(drain=pb.Drain(reconnect_delay=duration(reconnect_delay_s)))


def _checkpoint(event: Checkpoint) -> pb.Checkpoint:
    left_s = event.token_remaining_s
    return pb.Checkpoint(
        cursors=map(cursor_message, event.cursors),
        hint=hint_message(event.hint),
        token_remaining=None if left_s is None else duration(left_s),
        token=event.token,
    )
