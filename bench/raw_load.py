"""Our own load generator, for calls that all differ, which h2load cannot send: frames are encoded in advance.

Responses are only counted. It costs about a third of a bare echo, which affects ours and the baseline equally.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from typing import Any, cast

import hpack
import uvloop

from bench import wire
from bench.h2load import CONNECTIONS, STREAMS, Load

_TIMEOUT_S = 120.0


def run(address: str, path: str, warm_up: tuple[str, bytes], calls: Sequence[tuple[str, bytes]]) -> Load:
    """Make every call, (token, message), once, over 16 connections x 4 streams; each connection begins with `warm_up`.

    Raises:
        RuntimeError: one did not end with grpc-status 0, or the connection was lost.
    """
    made = [wire.encode_call(path, token, message) for token, message in calls]
    first = wire.encode_call(path, *warm_up, first=True)
    return uvloop.run(_run(address, made, first))


async def _run(address: str, calls: Sequence[wire.Call], first: wire.Call) -> Load:
    loop = asyncio.get_running_loop()
    host, _, port = address.rpartition(":")
    left = iter(calls)
    connections = []
    for _ in range(CONNECTIONS):
        _, connection = await loop.create_connection(lambda: _Connection(left), host, int(port))
        connections.append(connection)
    # The first call of each fills its header table; it is not counted.
    async with asyncio.timeout(_TIMEOUT_S):
        await asyncio.gather(*(connection.warm_up(first) for connection in connections))
        started = time.perf_counter()
        await asyncio.gather(*(connection.work() for connection in connections))
        took = time.perf_counter() - started
    for connection in connections:
        connection.close()
    return Load(len(calls), took)


class _Connection(asyncio.Protocol):
    def __init__(self, left: Iterator[wire.Call]) -> None:
        self._left = left
        self._decoder = hpack.Decoder()
        self._good: set[bytes] = set()
        self._buffer = b""
        self._stream_id = 1
        self._open = 0
        self._working = False
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its bases
        self._transport.write(wire.connection_preface())

    async def warm_up(self, first: wire.Call) -> None:
        """Make one call."""
        self._send([first])
        await self._done

    async def work(self) -> None:
        """Make calls until none is left."""
        self._working = True
        self._done = asyncio.get_running_loop().create_future()
        self._go_on(STREAMS)
        await self._done

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(f"the server hung up: {exc}")

    def data_received(self, data: bytes) -> None:
        received = self._buffer + data if self._buffer else data
        at, size, ended = 0, len(received), 0
        while size - at >= 9:
            length = received[at] << 16 | received[at + 1] << 8 | received[at + 2]
            end = at + 9 + length
            if end > size:
                break
            kind, flags = received[at + 3], received[at + 4]
            if kind == wire.HEADERS:
                ended += self._headers(received[at + 9 : end], flags)
            elif kind != wire.DATA:
                self._control(kind, flags, received[at + 9 : end])
            at = end
        self._buffer = received[at:]
        if ended:
            self._open -= ended
            self._go_on(ended)

    def _headers(self, block: bytes, flags: int) -> int:
        last = flags & wire.END_STREAM
        # A block that did not change the header table decodes to the same fields again.
        if block in self._good:
            return last
        before = list(self._decoder.header_table.dynamic_entries)
        fields: dict[Any, Any] = dict(self._decoder.decode(block))
        if last and fields.get("grpc-status") != "0":
            self._fail(f"a call ended with {fields}")
        if list(self._decoder.header_table.dynamic_entries) == before:
            self._good.add(block)
        else:
            self._good.clear()
        return last

    def _control(self, kind: int, flags: int, payload: bytes) -> None:
        if kind == wire.SETTINGS and not flags & wire.ACK:
            self._transport.write(wire.settings_ack())
        elif kind == wire.PING and not flags & wire.ACK:
            self._transport.write(wire.ping_ack(payload))
        elif kind in (wire.RST_STREAM, wire.GOAWAY):
            self._fail("the server refused a call")

    def _go_on(self, count: int) -> None:
        if self._working:
            self._send([call for _ in range(count) if (call := next(self._left, None)) is not None])
        if not self._open and not self._done.done():
            self._done.set_result(None)

    def _send(self, calls: Sequence[wire.Call]) -> None:
        if calls:
            frames = []
            for call in calls:
                frames.append(call.frames(self._stream_id))
                self._stream_id += 2
            self._open += len(calls)
            self._transport.write(b"".join(frames))

    def _fail(self, why: str) -> None:
        if not self._done.done():
            self._done.set_exception(RuntimeError(why))
