"""Holds many gRPC server streams over few connections, and notes when a message with a mark arrives on each.

It reads HTTP/2 frames and nothing in them, so that it costs little beside the server that it shares a machine with.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import cast

from bench import wire

_TIMEOUT_S = 120.0


class Receiver:
    """The streams of one server, opened at once."""

    def __init__(self) -> None:
        self._connections: list[_Connection] = []
        self._mark = b""
        self._expected = 0
        self._arrivals: list[float] = []
        self._all = asyncio.Event()

    async def open(self, address: str, path: str, requests: Sequence[tuple[str, bytes]], per_connection: int) -> None:
        """Open a stream for each (token, request), and wait until each has received something."""
        host, _, port = address.rpartition(":")
        loop = asyncio.get_running_loop()
        groups = [requests[at : at + per_connection] for at in range(0, len(requests), per_connection)]
        async with asyncio.timeout(_TIMEOUT_S):
            for group in groups:
                _, connection = await loop.create_connection(lambda: _Connection(self), host, int(port))
                self._connections.append(connection)
                connection.open_streams(path, group)
            await asyncio.gather(*(connection.opened.wait() for connection in self._connections))

    def expect(self, mark: bytes, of: int) -> None:
        """Note arrivals of messages that hold `mark` from now on, until there are so many."""
        self._mark, self._arrivals, self._expected = mark, [], of
        self._all.clear()

    async def arrivals(self) -> list[float]:
        """Return the times at which it arrived (`time.perf_counter`), one for each message."""
        async with asyncio.timeout(_TIMEOUT_S):
            await self._all.wait()
        return self._arrivals

    def close(self) -> None:
        """Close all streams."""
        for connection in self._connections:
            connection.close()

    def received(self, payload: bytes) -> None:
        """Note a DATA frame."""
        if self._mark and self._mark in payload:
            self._arrivals.append(time.perf_counter())
            if len(self._arrivals) >= self._expected:
                self._all.set()


class _Connection(asyncio.Protocol):
    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._buffer = b""
        self._heard: set[int] = set()
        self.streams = 0
        self.opened = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its bases
        self._transport.write(wire.connection_preface())

    def open_streams(self, path: str, requests: Sequence[tuple[str, bytes]]) -> None:
        self.streams = len(requests)
        for number, (token, request) in enumerate(requests):
            call = wire.encode_call(path, token, request, first=not number)
            self._transport.write(call.frames(2 * number + 1))

    def close(self) -> None:
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        received = self._buffer + data if self._buffer else data
        at, size = 0, len(received)
        while size - at >= 9:
            end = at + 9 + int.from_bytes(received[at : at + 3], "big")
            if end > size:
                break
            kind, flags, payload = received[at + 3], received[at + 4], received[at + 9 : end]
            if kind == wire.DATA:
                self._heard.add(int.from_bytes(received[at + 5 : at + 9], "big"))
                self._receiver.received(payload)
            elif kind == wire.SETTINGS and not flags & wire.ACK:
                self._transport.write(wire.settings_ack())
            elif kind == wire.PING and not flags & wire.ACK:
                self._transport.write(wire.ping_ack(payload))
            at = end
        self._buffer = received[at:]
        if len(self._heard) == self.streams:
            self.opened.set()
