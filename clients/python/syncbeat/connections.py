"""The channels behind a client: a new one, and so new connections, in place of one that is silent.

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

_SILENT_CALLS = 2  # one may have met a server that is slow

_Options: TypeAlias = Any
_Call: TypeAlias = Any  # the calls of grpc.aio, whose types say less than there is


class Connection:
    """A channel with connections of its own, and what is known of it."""

    def __init__(self, open_channel: Callable[[Connection], grpc.aio.Channel]) -> None:
        """`open_channel` makes the channel, which tells this of each unary call that has ended."""
        self.opened_at = time.monotonic()
        self.calls = 0
        """How many are under way."""
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

    def __init__(self, open_channel: Callable[[Connection], grpc.aio.Channel], spacing_s: float) -> None:
        """Open the first connection, see `Connection`; `spacing_s` lies between two that are opened for silence."""
        self._open_channel = open_channel
        self._spacing_s = spacing_s
        self._present = self._open()
        self._retired: set[Connection] = set()
        self._closed = False
        self._closing: set[asyncio.Task[None]] = set()
        self._of_stream: weakref.WeakKeyDictionary[_Call, Connection] = weakref.WeakKeyDictionary()

    def unary_unary(self, path: str, **options: _Options) -> Callable[..., _Call]:
        """A method that is answered once, as of a channel."""

        def call(request: object, **how: _Options) -> _Call:
            connection = self._present
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
            connection = self._present
            method = connection.methods.get(path)
            if method is None:
                method = connection.methods[path] = method_of(connection)
            begun = method(request, **how)
            connection.calls += 1
            self._of_stream[begun] = connection
            begun.add_done_callback(lambda _: self._left(connection))
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
        every = self._present, *self._retired
        await asyncio.gather(*(connection.channel.close() for connection in every), *self._closing)

    def _open(self) -> Connection:
        connection = Connection(self._open_channel)
        connection.on_silence = self._replace
        return connection

    def _replace(self, silent: Connection) -> None:
        # Of several calls that were silent together, the first has done it.
        if self._closed or silent is not self._present or time.monotonic() - silent.opened_at < self._spacing_s:
            return
        _log.info("the connection is silent; opening another")
        self._retired.add(silent)
        self._present = self._open()
        self._close_if_left(silent)

    def _left(self, connection: Connection) -> None:
        connection.calls -= 1
        self._close_if_left(connection)

    def _close_if_left(self, connection: Connection) -> None:
        # Calls under way end in their own time, by their deadlines or by gRPC's pings.
        if connection.calls == 0 and connection in self._retired:
            self._retired.remove(connection)
            task = asyncio.ensure_future(connection.channel.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
