"""Serves WatchHints for users and their devices on this process."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable

from syncbeat_server.errors import DependencyDown, Overloaded
from syncbeat_server.sync.hints.recorders import Recorders
from syncbeat_server.sync.hints.writer_presence import WriterPresence
from syncbeat_server.sync.model import DeviceKey, StreamEvent
from syncbeat_server.sync.streams.hint_stream import HintStream, WatchRequest
from syncbeat_server.sync.streams.stream_context import StreamContext
from syncbeat_server.sync.streams.subscription import Subscription


class HintStreams:
    """Opens hint streams, and keeps the hub, device presence and writer presence informed of them."""

    def __init__(
        self,
        context: StreamContext,
        recorders: Recorders,
        writers: WriterPresence,
        device_streams_changed: Callable[[DeviceKey], None],
    ) -> None:
        """`device_streams_changed(device)` is called after each stream of a device opens or closes."""
        self._context = context
        self._recorders = recorders
        self._writers = writers
        self._device_streams_changed = device_streams_changed

    async def watch(self, request: WatchRequest) -> AsyncGenerator[StreamEvent, None]:
        """Yield the events of one stream, until the token expires, the process drains or the stream is too old.

        Raises:
            AccessDenied: a cursor names a scope that the user is not a member of.
            RateLimited: the user, or the device, has as many streams open as allowed.
            TokenExpired: the caller's token expired.
            TokenRevoked: it was revoked.
        """
        subscription = Subscription(request.device, all_scopes=False)
        self._context.hub.add(subscription)
        self._update_presence(request)
        try:
            stream = HintStream(self._context, self._recorders, request, subscription)
            try:
                async for reset in stream.open():
                    yield reset
            except (DependencyDown, Overloaded) as error:
                raise self._spread(error) from error
            self._writers.record(request.device, request.activity)
            async for event in stream.follow():
                yield event
        finally:
            self._context.hub.remove(subscription)
            self._update_presence(request)

    def _spread(self, error: DependencyDown | Overloaded) -> DependencyDown | Overloaded:
        """Return an error that tells its caller alone when to come again: many streams are refused together.

        It is a new one, since a batch that fails ends with the same error for all its callers.
        """
        kind = DependencyDown if isinstance(error, DependencyDown) else Overloaded
        return kind(error.message, retry_after_s=error.retry_after_s + self._context.refetch_delay_s())

    def _update_presence(self, request: WatchRequest) -> None:
        if request.device.device_id:
            self._device_streams_changed(request.device)
