"""Streams and calls over plain HTTP/2 for the figures of streams: at a tenth of a gRPC client's cost for a message.

The header table of HPACK is off for what the server sends (RFC 7541, section 4.2), so each block is decoded alone, and
only those that end a call are.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import cast

import hpack

from bench import wire

_HEADER_TABLE_SIZE = 1
_NO_TABLE = wire.frame(wire.SETTINGS, 0, 0, _HEADER_TABLE_SIZE.to_bytes(2, "big") + bytes(4))
_FRAME_HEAD = 9

OnMessage = Callable[[bytes, float], None]
"""Gets one frame of data of a call, and the moment of its arrival."""
OnEnd = Callable[[dict[str, str]], None]
"""Gets the trailers of a call; a reset has none."""


class Connection(asyncio.Protocol):
    """One connection to a server, on which calls of one path run."""

    def __init__(self) -> None:
        self._calls: dict[int, tuple[OnMessage, OnEnd]] = {}
        self._buffer = b""
        self._next_id = 1
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its bases
        self._transport.write(wire.connection_preface() + _NO_TABLE)

    def start(self, call: wire.Call, on_message: OnMessage, on_end: OnEnd) -> None:
        """Start a call. The first of a connection is to be encoded as such."""
        self._calls[self._next_id] = on_message, on_end
        self._transport.write(call.frames(self._next_id))
        self._next_id += 2

    def abort(self) -> None:
        """Close the connection at once, as a device that loses its network; calls are not told."""
        self._calls.clear()
        self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        for _, on_end in list(self._calls.values()):
            on_end({})

    def data_received(self, data: bytes) -> None:
        received, now = self._buffer + data if self._buffer else data, time.perf_counter()
        at, size, calls = 0, len(received), self._calls
        while size - at >= _FRAME_HEAD:
            end = at + _FRAME_HEAD + (received[at] << 16 | received[at + 1] << 8 | received[at + 2])
            if end > size:
                break
            kind, flags = received[at + 3], received[at + 4]
            stream_id = int.from_bytes(received[at + 5 : at + 9], "big")
            if kind == wire.DATA:
                if call := calls.get(stream_id):
                    call[0](received[at + _FRAME_HEAD : end], now)
            elif kind == wire.RST_STREAM or (kind == wire.HEADERS and flags & wire.END_STREAM):
                block = received[at + _FRAME_HEAD : end] if kind == wire.HEADERS else b""
                self._end(stream_id, block)
            else:
                self._control(kind, flags, received[at + _FRAME_HEAD : end])
            at = end
        self._buffer = received[at:]

    def _end(self, stream_id: int, block: bytes) -> None:
        if call := self._calls.pop(stream_id, None):
            fields = hpack.Decoder().decode(block) if block else []
            call[1]({str(name): str(value) for name, value in fields})

    def _control(self, kind: int, flags: int, payload: bytes) -> None:
        if kind == wire.SETTINGS and not flags & wire.ACK:
            self._transport.write(wire.settings_ack())
        elif kind == wire.PING and not flags & wire.ACK:
            self._transport.write(wire.ping_ack(payload))


async def connect(address: str) -> Connection:
    """Open a connection to `host:port`."""
    host, _, port = address.rpartition(":")
    _, connection = await asyncio.get_running_loop().create_connection(Connection, host, int(port))
    return connection


class Unary:
    """Calls of one path and token over a connection of their own, several at once."""

    def __init__(self, connection: Connection, path: str, token: str) -> None:
        self._connection = connection
        self._path = path
        self._token = token
        self._first = True

    async def call(self, message: bytes) -> float:
        """Make a call, and return the seconds that it took. Raises RuntimeError if it did not end OK."""
        done: asyncio.Future[dict[str, str]] = asyncio.get_running_loop().create_future()
        made = wire.encode_call(self._path, self._token, message, first=self._first)
        self._first = False
        started = time.perf_counter()
        self._connection.start(made, _ignore, done.set_result)
        trailers = await done
        if trailers.get("grpc-status") != "0":
            raise RuntimeError(f"a call ended with {trailers}")
        return time.perf_counter() - started


class Streams:
    """Many streams, one for each token, over a few connections.

    A stream that ends with a delay is opened again after it (`delayed`); one that ends without is an error of the
    server (`refused`), and opened again after a second.
    """

    def __init__(self, address: str, path: str, tokens: Sequence[str], request: bytes, connections: int) -> None:
        self.arrived: list[float] = []
        self.delayed = self.refused = 0
        self._address = address
        self._path = path
        self._tokens = tokens
        self._request = request
        self._connections: list[Connection] = [Connection()] * connections
        self._marker = b""
        self._waiting: set[int] = set()
        self._done = asyncio.Event()

    async def open(self) -> float:
        """Connect, open all streams at once, wait until each has sent something, and return the seconds it took."""
        self._expect(b"")
        started = time.perf_counter()
        count = len(self._connections)
        for number in range(count):
            self._connections[number] = await connect(self._address)
            for index in range(number, len(self._tokens), count):
                self._start(index, first=index == number)
        await self._done.wait()
        return time.perf_counter() - started

    async def receive(self, marker: bytes, send: Callable[[], object]) -> list[float]:
        """Return the moments at which each stream got a message with `marker`, which `send` makes the server send."""
        self._expect(marker)
        send()
        await self._done.wait()
        return self.arrived

    def abort(self) -> None:
        """Close all connections at once."""
        for connection in self._connections:
            connection.abort()

    def _expect(self, marker: bytes) -> None:
        self.arrived = []
        self._marker = marker
        self._waiting = set(range(len(self._tokens)))
        self._done.clear()

    def _start(self, index: int, *, first: bool = False) -> None:
        def on_message(data: bytes, now: float) -> None:
            if index in self._waiting and self._marker in data:
                self._waiting.discard(index)
                self.arrived.append(now)
                if not self._waiting:
                    self._done.set()

        def on_end(trailers: dict[str, str]) -> None:
            delay_ms = trailers.get("grpc-retry-pushback-ms")
            self.delayed += delay_ms is not None
            self.refused += delay_ms is None
            pause_s = 1.0 if delay_ms is None else int(delay_ms) / 1000
            asyncio.get_running_loop().call_later(pause_s, self._start, index)

        call = wire.encode_call(self._path, self._tokens[index], self._request, first=first)
        self._connections[index % len(self._connections)].start(call, on_message, on_end)


def _ignore(_data: bytes, _now: float) -> None:
    pass
