"""An HTTP/2 client that does what no good client does: half a request, no window, a reset at once (RFC 9113)."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import hpack

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS = 1, 1, 4
_INITIAL_WINDOW_SIZE = 4
_REFUSED_STREAM, _CANCEL = 7, 8
USUAL_WINDOW = 65_535


@dataclass
class Answer:
    """The answer on a stream. `ended`: it came to an end; `reset`: with this code of RST_STREAM."""

    headers: dict[str, str] = field(default_factory=dict)
    data: bytes = b""
    ended: bool = False
    reset: int | None = None

    @property
    def is_over(self) -> bool:
        """True once nothing more comes."""
        return self.ended or self.reset is not None

    @property
    def status(self) -> str:
        """The gRPC status, as digits; empty while there is none."""
        return self.headers.get("grpc-status", "")


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame (RFC 9113, section 4.1)."""
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def grpc_message(payload: bytes, *, compressed: bool = False) -> bytes:
    """A message as gRPC frames it."""
    return bytes([compressed]) + struct.pack(">I", len(payload)) + payload


def request_block(path: str, headers: Sequence[tuple[str, str]] = ()) -> bytes:
    """A header block that names the whole of itself, so that it can be sent again and again."""
    fields = [
        *((":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "localhost")),
        *(("te", "trailers"), ("content-type", "application/grpc"), *headers),
    ]
    return hpack.Encoder().encode([hpack.NeverIndexedHeaderTuple(*pair) for pair in fields], huffman=False)


class RawConnection:
    """One connection. It reads all that comes, and answers pings; it opens windows only when it is told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.answers: dict[int, Answer] = {}
        self.closed = asyncio.Event()
        self.goaway: int | None = None
        self._reader = reader
        self._writer = writer
        self._next = 1
        self._decoder = hpack.Decoder()

    def request_headers(self, path: str, headers: Sequence[tuple[str, str]] = ()) -> bytes:
        """Return `request_block`."""
        return request_block(path, headers)

    def start(self, path: str, body: bytes = b"", headers: Sequence[tuple[str, str]] = (), *, end: bool = True) -> int:
        """Begin a call. Without `end` more of its request may follow."""
        return self.start_block(self.request_headers(path, headers), body, end=end)

    def start_block(self, block: bytes, body: bytes = b"", *, end: bool = True) -> int:
        """Begin a call with these encoded headers."""
        stream, self._next = self._next, self._next + 2
        self.answers[stream] = Answer()
        self._writer.write(frame(_HEADERS, _END_HEADERS | (_END_STREAM if end and not body else 0), stream, block))
        if body:
            self.send(stream, body, end=end)
        return stream

    def send(self, stream: int, body: bytes, *, end: bool = True) -> None:
        """Send more of a request; more than the server's window (64 KiB at first) ends the connection."""
        pieces = [body[at : at + 16_384] for at in range(0, len(body), 16_384)]
        for number, piece in enumerate(pieces):
            last = end and number == len(pieces) - 1
            self._writer.write(frame(_DATA, _END_STREAM if last else 0, stream, piece))

    def reset(self, stream: int) -> None:
        """Cancel a call, and forget what came of it."""
        self._writer.write(frame(_RST_STREAM, 0, stream, struct.pack(">I", _CANCEL)))
        self.answers.pop(stream, None)

    def open_window(self, stream: int, size: int) -> None:
        """Let the server send so much more on a stream."""
        self._writer.write(frame(_WINDOW_UPDATE, 0, stream, struct.pack(">I", size)))

    async def flush(self) -> None:
        """Wait until the kernel has taken what was written."""
        with suppress(ConnectionError):
            await self._writer.drain()

    def begin(self, window: int) -> None:
        """Say hello, and how much the server may send on each stream."""
        settings = struct.pack(">HI", _INITIAL_WINDOW_SIZE, window)
        self._writer.write(_PREFACE + frame(_SETTINGS, 0, 0, settings))

    async def listen(self) -> None:
        """Read until the connection ends."""
        try:
            while True:
                head = await self._reader.readexactly(9)
                length, (stream,) = int.from_bytes(head[:3]), struct.unpack(">I", head[5:])
                self._take(head[3], head[4], stream, await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.closed.set()
            self._writer.close()

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        answer = self.answers.get(stream, Answer())
        asks = not flags & _ACK
        if kind == _DATA and payload:
            answer.data += payload
            self.open_window(0, len(payload))  # of the connection only
        elif kind == _HEADERS:
            answer.headers.update((str(name), str(value)) for name, value in self._decoder.decode(payload))
        elif kind == _RST_STREAM:
            (answer.reset,) = struct.unpack(">I", payload)
        elif kind == _SETTINGS and asks:
            self._writer.write(frame(_SETTINGS, _ACK, 0))
        elif kind == _PING and asks:
            self._writer.write(frame(_PING, _ACK, 0, payload))
        elif kind == _GOAWAY:
            (self.goaway,) = struct.unpack(">I", payload[4:8])
        if kind in (_DATA, _HEADERS) and flags & _END_STREAM:
            answer.ended = True


class BlockingConnection:
    """A connection that blocks its thread while it sends and reads, and with it a server in the same loop."""

    def __init__(self, opened: socket.socket) -> None:
        """Say hello, and wait until the server has said what it allows."""
        self._socket = opened
        self._stream = -1
        self._send(_PREFACE + frame(_SETTINGS, 0, 0))
        while self._frame()[:2] != (_SETTINGS, 0):
            pass
        self._send(frame(_SETTINGS, _ACK, 0))

    def start(self, path: str) -> int:
        """Begin a call with an empty message."""
        self._stream += 2
        head = frame(_HEADERS, _END_HEADERS, self._stream, request_block(path))
        self._send(head + frame(_DATA, _END_STREAM, self._stream, grpc_message(b"")))
        return self._stream

    def reset(self, streams: Sequence[int]) -> None:
        """Cancel calls."""
        self._send(b"".join(frame(_RST_STREAM, 0, stream, struct.pack(">I", _CANCEL)) for stream in streams))

    def count_refused(self) -> int:
        """Wait until the server has read what was sent. Returns how many calls it refused (REFUSED_STREAM)."""
        self._send(frame(_PING, 0, 0, b"the last"))
        refused = 0
        while (told := self._frame()) != (_PING, _ACK, b"the last"):
            refused += told == (_RST_STREAM, 0, struct.pack(">I", _REFUSED_STREAM))
        return refused

    def _send(self, frames: bytes) -> None:
        self._socket.sendall(frames)

    def _frame(self) -> tuple[int, int, bytes]:
        head = self._exactly(9)
        return head[3], head[4], self._exactly(int.from_bytes(head[:3]))

    def _exactly(self, size: int) -> bytes:
        octets = b""
        while len(octets) < size:
            more = self._socket.recv(size - len(octets))
            assert more, "the server closed the connection"
            octets += more
        return octets


@asynccontextmanager
async def raw_connection(address: str, window: int = USUAL_WINDOW) -> AsyncIterator[RawConnection]:
    """A connection for the block, each of whose streams the server may send `window` bytes on."""
    host, _, port = address.rpartition(":")
    connection = RawConnection(*await asyncio.open_connection(host, int(port)))
    connection.begin(window)
    listening = asyncio.create_task(connection.listen())
    try:
        yield connection
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
