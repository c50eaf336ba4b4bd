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
        self._open_channel = open_channel
        self._lines = [self._open()]
        self._retired: set[Connection] = set()
        self._closed = False
        self._closing: set[asyncio.Task[None]] = set()
        self._line_of: weakref.WeakKeyDictionary[_Call, Connection] = weakref.WeakKeyDictionary()

    def unary_unary(self, path: str, **options: _Options) -> Callable[..., _Call]:
        """A method that is answered once, as of a channel."""
        made: weakref.WeakKeyDictionary[Connection, Callable[..., _Call]] = weakref.WeakKeyDictionary()

        def call(request: object, **how: _Options) -> _Call:
            line = self._lines[0]
            method = made.get(line)
            if method is None:
                method = made[line] = line.channel.unary_unary(path, **options)
            begun = method(request, **how)
            line.calls += 1
            begun.add_done_callback(lambda _: self._left(line))
            return begun

        return call

    def unary_stream(self, path: str, *, response_deserializer: Callable[[bytes], Any], **options: _Options) -> Any:
        """A method that is answered by a stream, as of a channel."""
        made: weakref.WeakKeyDictionary[Connection, Callable[..., _Call]] = weakref.WeakKeyDictionary()

        def method_of(line: Connection) -> Callable[..., _Call]:
            def read(data: bytes) -> Any:
                line.heard()
                return response_deserializer(data)

            return line.channel.unary_stream(path, response_deserializer=read, **options)

        def call(request: object, **how: _Options) -> _Call:
            line = self._with_room()
            method = made.get(line)
            if method is None:
                method = made[line] = method_of(line)
            begun = method(request, **how)
            line.calls += 1
            line.streams += 1
            self._line_of[begun] = line
            begun.add_done_callback(lambda _: self._left(line, stream=True))
            return begun

        return call

    def silent(self, call: _Call) -> None:
        """A stream brought nothing for as long as it may."""
        line = self._line_of.get(call)
        if line is not None:
            self._replace(line)

    async def close(self) -> None:
        """End whatever is under way, and all connections."""
        self._closed = True
        await asyncio.gather(*(line.channel.close() for line in (*self._lines, *self._retired)), *self._closing)

    def _open(self) -> Connection:
        line = Connection(self._open_channel)
        line.on_silence = self._replace
        return line

    def _with_room(self) -> Connection:
        for line in self._lines:
            if line.streams < _MOST_STREAMS:
                return line
        self._lines.append(self._open())
        return self._lines[-1]

    def _replace(self, line: Connection) -> None:
        now = time.monotonic()
        if self._closed or line not in self._lines or now - line.opened_at < _PAUSE_S:
            return
        _log.info("a connection is silent; opening another")
        self._lines.remove(line)
        self._retired.add(line)
        # Where several were silent together, the first of them was replaced already.
        if not self._lines or now - self._lines[0].opened_at >= _PAUSE_S:
            self._lines.insert(0, self._open())
        self._close_if_left(line)

    def _left(self, line: Connection, *, stream: bool = False) -> None:
        line.calls -= 1
        line.streams -= stream
        self._close_if_left(line)

    def _close_if_left(self, line: Connection) -> None:
        # Calls under way end in their own time, by their deadlines or by gRPC's pings.
        if line.calls == 0 and line in self._retired:
            self._retired.remove(line)
            task = asyncio.ensure_future(line.channel.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
