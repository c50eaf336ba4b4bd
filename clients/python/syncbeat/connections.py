"""Replaces the channel of a client, and with it its connections, when it has become silent (ADR 84).

A network path may die without either side noticing, as behind a router that forgot it. Then the connection stays open,
and each call on it ends at its deadline. gRPC notices by pings, which it sends only while calls are open for 30 s, and
polls end sooner. So silence is found by the calls that ended without an answer.
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

_MAX_SILENT_CALLS = 2  # one alone may have met a slow server

_Options: TypeAlias = Any
_Call: TypeAlias = Any  # grpc.aio's calls, whose types lack methods that exist


class Connection:
    """A channel with connections of its own, and the calls over it."""

    def __init__(self, open_channel: Callable[[Connection], grpc.aio.Channel]) -> None:
        """`open_channel` makes the channel, whose interceptor calls `ended` for each unary call."""
        self.opened_at = time.monotonic()
        self.calls = 0
        """The calls in flight."""
        self.channel = open_channel(self)
        self.methods: dict[str, Callable[..., _Call]] = {}
        """The methods called over it so far, by path."""
        self.on_silence: Callable[[Connection], None] | None = None
        self._silent_calls = 0
        self._checking: set[asyncio.Task[None]] = set()

    def record_data(self) -> None:
        """Note that something came over it."""
        self._silent_calls = 0

    def ended(self, call: _Call) -> None:
        """Note that a unary call has ended. Before its deadline means: it was answered, or gRPC knows what is wrong."""
        left_s = call.time_remaining()
        if call.cancelled():
            return
        if left_s is None or left_s > 0:
            self.record_data()
            return
        task = asyncio.ensure_future(self._check(call))
        self._checking.add(task)
        task.add_done_callback(self._checking.discard)

    async def _check(self, call: _Call) -> None:
        # A deadline that the server noticed comes with trailers; without any, nothing came at all.
        if await call.code() is not grpc.StatusCode.DEADLINE_EXCEEDED or await call.trailing_metadata():
            self.record_data()
            return
        self._silent_calls += 1
        if self._silent_calls >= _MAX_SILENT_CALLS and self.on_silence is not None:
            self.on_silence(self)


class Connections:
    """Stands in for a channel: stubs made of it call over the connection that is in use at the time."""

    def __init__(self, open_channel: Callable[[Connection], grpc.aio.Channel], spacing_s: float) -> None:
        """Open the first connection; `open_channel` is as in `Connection`.

        At least `spacing_s` seconds lie between two connections that are opened because one was silent.
        """
        self._open_channel = open_channel
        self._spacing_s = spacing_s
        self._current = self._open()
        self._retired: set[Connection] = set()
        self._closed = False
        self._closing: set[asyncio.Task[None]] = set()
        self._connection_of: weakref.WeakKeyDictionary[_Call, Connection] = weakref.WeakKeyDictionary()

    def unary_unary(self, path: str, **options: _Options) -> Callable[..., _Call]:
        """Return a method with a single response, as a channel does."""

        def call(request: object, **how: _Options) -> _Call:
            connection = self._current
            method = connection.methods.get(path)
            if method is None:
                method = connection.methods[path] = connection.channel.unary_unary(path, **options)
            begun = method(request, **how)
            connection.calls += 1
            begun.add_done_callback(lambda _: self._release(connection))
            return begun

        return call

    def unary_stream(self, path: str, *, response_deserializer: Callable[[bytes], Any], **options: _Options) -> Any:
        """Return a method with a stream of responses, as a channel does."""

        def method_of(connection: Connection) -> Callable[..., _Call]:
            def read(data: bytes) -> Any:
                connection.record_data()
                return response_deserializer(data)

            return connection.channel.unary_stream(path, response_deserializer=read, **options)

        def call(request: object, **how: _Options) -> _Call:
            connection = self._current
            method = connection.methods.get(path)
            if method is None:
                method = connection.methods[path] = method_of(connection)
            begun = method(request, **how)
            connection.calls += 1
            self._connection_of[begun] = connection
            begun.add_done_callback(lambda _: self._release(connection))
            return begun

        return call

    def report_silence(self, call: _Call) -> None:
        """Replace the connection of a stream that brought nothing for as long as it may."""
        connection = self._connection_of.get(call)
        if connection is not None:
            self._replace(connection)

    async def close(self) -> None:
        """End the calls in flight, and close all connections."""
        self._closed = True
        every = self._current, *self._retired
        await asyncio.gather(*(connection.channel.close() for connection in every), *self._closing)

    def _open(self) -> Connection:
        connection = Connection(self._open_channel)
        connection.on_silence = self._replace
        return connection

    def _replace(self, silent: Connection) -> None:
        # Of several calls that were silent together, the first has replaced it.
        if self._closed or silent is not self._current or time.monotonic() - silent.opened_at < self._spacing_s:
            return
        _log.info("the connection is silent; opening another")
        self._retired.add(silent)
        self._current = self._open()
        self._close_if_unused(silent)

    def _release(self, connection: Connection) -> None:
        connection.calls -= 1
        self._close_if_unused(connection)

    def _close_if_unused(self, connection: Connection) -> None:
        # Calls in flight end in their own time, by their deadlines or by gRPC's pings.
        if connection.calls == 0 and connection in self._retired:
            self._retired.remove(connection)
            task = asyncio.ensure_future(connection.channel.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
