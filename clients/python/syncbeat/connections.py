"""The connections behind a client: a new one in place of one that is silent, one more where none has room for streams.

A path may be dead without either side being told, as behind a router that forgot it: then a connection stays as it is,
and whatever is called on it ends at its deadline. gRPC notices by pings, which it sends while calls are open for 30 s;
polls end sooner. So who made the calls tells of silence.
"""

from __future__ import annotations

import asyncio
import logging
import time
import weakref
from collections.abc import Callable
from typing import Any, TypeAlias

import grpc

_log = logging.getLogger(__name__)

_MOST_STREAMS = (
    90  # proxies let through 100 calls of a connection, and those beyond wait without a word: ten for the rest
)
_SILENT_CALLS = 2  # one may have met a server that is slow
_PAUSE_S = 10.0  # from one new connection to the next, where silence is not the connection's fault

_Options: TypeAlias = Any
_Call: TypeAlias = Any  # the calls of grpc.aio, whose types say less than there is


class Connection:
    """A channel with a connection of its own, and what is known of it."""

    def __init__(self, open_channel: Callable[[Connection], grpc.aio.Channel]) -> None:
        """`open_channel` makes the channel, which tells this of each unary call that has ended."""
        self.opened_at = time.monotonic()
        self.calls = 0
        """How many are under way, streams included."""
        self.streams = 0
        self.channel = open_channel(self)
        self.methods: dict[str, Callable[..., _Call]] = {}
        """The methods that were called over it, by path."""
        self.on_silence: Callable[[Connection], None] | None = None
        self._silent_calls = 0
        self._looking: set[asyncio.Task[None]] = set()

    def heard(self) -> None:
        """Something came over it."""
        self._silent_calls = 0

    def ended(self, call: _Call) -> None:
        """A unary call has ended. What ends before its deadline was answered, or gRPC knows what is wrong."""
        left_s = call.time_remaining()
        if call.cancelled():
            return
        if left_s is None or left_s > 0:
            self.heard()
            return
        task = asyncio.ensure_future(self._look(call))
        self._looking.add(task)
        task.add_done_callback(self._looking.discard)

    async def _look(self, call: _Call) -> None:
        # A deadline that the server noticed comes with its reason; by itself it says that nothing came.
        if await call.code() is not grpc.StatusCode.DEADLINE_EXCEEDED or await call.trailing_metadata():
            self.heard()
            return
        self._silent_calls += 1
        if self._silent_calls >= _SILENT_CALLS and self.on_silence is not None:
            self.on_silence(self)


class Connections:
    """Stands in for a channel: stubs that are made of it call over whichever connection is the right one then."""

    def __init__(self, open_channel: Callable[[Connection], grpc.aio.Channel]) -> None:
        """See `Connection`; the first one is opened now."""
        self._open_channel = open_channel
        self._used = [self._open()]
        self._retired: set[Connection] = set()
        self._closed = False
        self._closing: set[asyncio.Task[None]] = set()
        self._of_stream: weakref.WeakKeyDictionary[_Call, Connection] = weakref.WeakKeyDictionary()

    def unary_unary(self, path: str, **options: _Options) -> Callable[..., _Call]:
        """A method that is answered once, as of a channel."""

        def call(request: object, **how: _Options) -> _Call:
            connection = self._used[0]
            method = connection.methods.get(path)
            if method is None:
                method = connection.methods[path] = connection.channel.unary_unary(path, **options)
            begun = method(request, **how)
            connection.calls += 1
            begun.add_done_callback(lambda _: self._left(connection))
            return begun

        return call

    def unary_stream(self, path: str, *, response_deserializer: Callable[[bytes], Any], **options: _Options) -> Any:
        """A method that is answered by a stream, as of a channel."""

        def method_of(connection: Connection) -> Callable[..., _Call]:
            def read(data: bytes) -> Any:
                connection.heard()
                return response_deserializer(data)

            return connection.channel.unary_stream(path, response_deserializer=read, **options)

        def call(request: object, **how: _Options) -> _Call:
            connection = self._with_room()
            method = connection.methods.get(path)
            if method is None:
                method = connection.methods[path] = method_of(connection)
            begun = method(request, **how)
            connection.calls += 1
            connection.streams += 1
            self._of_stream[begun] = connection
            begun.add_done_callback(lambda _: self._left(connection, stream=True))
            return begun

        return call

    def silent(self, call: _Call) -> None:
        """A stream brought nothing for as long as it may."""
        connection = self._of_stream.get(call)
        if connection is not None:
            self._replace(connection)

    async def close(self) -> None:
        """End whatever is under way, and all connections."""
        self._closed = True
        every = *self._used, *self._retired
        await asyncio.gather(*(connection.channel.close() for connection in every), *self._closing)

    def _open(self) -> Connection:
        connection = Connection(self._open_channel)
        connection.on_silence = self._replace
        return connection

    def _with_room(self) -> Connection:
        for connection in self._used:
            if connection.streams < _MOST_STREAMS:
                return connection
        self._used.append(self._open())
        return self._used[-1]

    def _replace(self, silent: Connection) -> None:
        now = time.monotonic()
        if self._closed or silent not in self._used or now - silent.opened_at < _PAUSE_S:
            return
        _log.info("a connection is silent; it is used no longer")
        self._used.remove(silent)
        self._retired.add(silent)
        # Where several were silent together, there is a new one already.
        if not self._used or now - self._used[0].opened_at >= _PAUSE_S:
            self._used.insert(0, self._open())
        self._close_if_left(silent)

    def _left(self, connection: Connection, *, stream: bool = False) -> None:
        connection.calls -= 1
        connection.streams -= stream
        self._close_if_left(connection)

    def _close_if_left(self, connection: Connection) -> None:
        # Calls under way end in their own time, by their deadlines or by gRPC's pings.
        if connection.calls == 0 and connection in self._retired:
            self._retired.remove(connection)
            task = asyncio.ensure_future(connection.channel.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
