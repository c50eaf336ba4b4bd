"""HTTP/2 connections: the part of RFC 9113 that a server of small responses needs.

Written by hand because a general state machine in Python takes 0.3 ms for a request: ten times as much as all the rest
of the fake.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple, cast

from hpack import Decoder, HPACKError

from syncbeat_devtools.fake_fcm.responses import Response
from syncbeat_devtools.fake_fcm.router import Router
from syncbeat_devtools.fake_fcm.wire import http2_frames as frames
from syncbeat_devtools.fake_fcm.wire.buffered_protocol import SharedBufferProtocol
from syncbeat_devtools.fake_fcm.wire.http1 import MAX_REQUEST_BYTES, abort_with_reset
from syncbeat_devtools.fake_fcm.wire.http2_frames import ProtocolError, frame

# The client's connection preface (RFC 9113, 3.4); no HTTP/1.1 request begins like it.
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

# FCM's own limit is not documented; 100 is the minimum that RFC 9113 recommends.
_MAX_STREAMS = 100
_MAX_HEADER_BYTES = 1 << 16
_MAX_CACHED_HEADS = 64
# A stream's window holds a whole request and the frame that exceeds its limit, so only the connection's window ever
# needs an update.
_STREAM_WINDOW = MAX_REQUEST_BYTES + frames.MAX_FRAME_BYTES
_WINDOW = _MAX_STREAMS * _STREAM_WINDOW
_SERVER_PREFACE = frames.settings_frame(
    {
        frames.MAX_CONCURRENT_STREAMS: _MAX_STREAMS,
        frames.INITIAL_WINDOW_SIZE: _STREAM_WINDOW,
        frames.MAX_HEADER_LIST_SIZE: _MAX_HEADER_BYTES,
    }
) + frames.uint32_frame(frames.WINDOW_UPDATE, 0, _WINDOW - frames.DEFAULT_WINDOW)


class _RequestHead(NamedTuple):
    method: bytes = b""
    url: bytes = b""
    authorization: bytes | None = None
    host: bytes = b""


class _PartialHeaderBlock(NamedTuple):
    """A header block that continues in CONTINUATION frames."""

    stream_id: int
    ends: bool
    received: bytes


class Http2Stream:
    """A request and its exchange."""

    __slots__ = ("_connection", "body", "ended", "head", "outgoing", "stream_id", "window")

    def __init__(self, connection: Http2Connection, stream_id: int, head: _RequestHead, window: int) -> None:
        self._connection = connection
        self.stream_id = stream_id
        self.head = head
        self.window = window
        self.body = b""
        self.ended = False
        self.outgoing = memoryview(b"")

    def respond(self, response: Response) -> None:
        """Write a late response."""
        self._connection.queue_response(self, response)
        self._connection.flush()

    def reset(self) -> None:
        """Close the whole connection with an RST."""
        self._connection.reset()


class Http2Connection(SharedBufferProtocol):
    """An HTTP/2 connection."""

    _transport: asyncio.Transport

    def __init__(self, router: Router) -> None:
        super().__init__(router.read_buffer)
        self._router = router
        self._decoder = Decoder(max_header_list_size=_MAX_HEADER_BYTES)
        # A header block decodes to the same head as long as no block changes the dynamic table.
        self._head_cache: dict[bytes, _RequestHead] = {}
        self._streams: dict[int, Http2Stream] = {}
        self._blocked: dict[int, Http2Stream] = {}  # for the client to open a window
        self._partial_block: _PartialHeaderBlock | None = None
        self._received = b""
        self._preface_seen = False
        self._outgoing: list[bytes] = []
        self._window = self._initial_window = frames.DEFAULT_WINDOW
        self._table_update = b""
        self._unacknowledged = 0
        self._last_stream_id = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the settings."""
        self._transport = cast(asyncio.Transport, transport)
        self._router.connections.add(self._transport)
        self._transport.write(_SERVER_PREFACE)

    def connection_lost(self, exc: Exception | None) -> None:
        """Abandon the requests of this client."""
        self._router.connections.discard(self._transport)
        for stream in tuple(self._streams.values()):
            self._drop(stream)

    def data_received(self, data: bytes) -> None:
        """Parse data, serve complete requests, and write all responses at once."""
        if self._transport.is_closing():
            return
        try:
            self._received = self._read(self._received + data if self._received else data)
        except ProtocolError as broken:
            goodbye = self._last_stream_id.to_bytes(4, "big") + broken.code.to_bytes(4, "big")
            self._outgoing.append(frame(frames.GOAWAY, 0, 0, goodbye))
            self.flush()
            self._transport.close()
            return
        self.flush()

    def pause_writing(self) -> None:
        """Stop reading requests from a client that does not read responses."""
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        """Resume reading requests."""
        self._transport.resume_reading()

    def queue_response(self, stream: Http2Stream, response: Response) -> None:
        """Queue a response; does nothing if the client has cancelled the stream."""
        if self._streams.get(stream.stream_id) is not stream:
            return
        block = self._table_update + frames.encode_headers(response)
        self._table_update = b""
        self._outgoing.append(frame(frames.HEADERS, frames.END_HEADERS, stream.stream_id, block))
        stream.outgoing = memoryview(response.body)
        self._send_body(stream)

    def reset(self) -> None:
        """Close the connection with an RST."""
        abort_with_reset(self._transport)

    def flush(self) -> None:
        """Write the queued frames."""
        if self._outgoing and not self._transport.is_closing():
            self._transport.write(b"".join(self._outgoing))
        self._outgoing.clear()

    def _read(self, data: bytes) -> bytes:
        """Handle all complete frames. Returns the remaining data."""
        at, end = 0, len(data)
        if not self._preface_seen:
            if not data.startswith(PREFACE):
                if PREFACE.startswith(data):
                    return data
                raise ProtocolError(frames.PROTOCOL_ERROR)
            self._preface_seen, at = True, len(PREFACE)
        while end - at >= frames.FRAME_HEADER_BYTES:
            size, kind, flags, stream_id = frames.read_frame_header(data, at)
            start = at + frames.FRAME_HEADER_BYTES
            if end - start < size:
                break
            at = start + size
            self._on_frame(kind, flags, stream_id, data[start:at])
        return data[at:]

    def _on_frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if self._partial_block is not None or kind == frames.CONTINUATION:
            self._on_continuation(kind, flags, stream_id, payload)
        elif kind == frames.DATA:
            self._on_data(flags, stream_id, payload)
        elif kind == frames.HEADERS:
            self._on_headers(flags, stream_id, payload)
        elif kind == frames.WINDOW_UPDATE:
            self._on_window_update(stream_id, frames.read_uint32(payload))
        elif kind == frames.RST_STREAM:
            frames.read_uint32(payload)
            self._drop(self._streams.get(stream_id))
        elif kind == frames.SETTINGS:
            if not flags & frames.ACK:
                self._on_settings(payload)
        elif kind == frames.PING:
            if len(payload) != 8:
                raise ProtocolError(frames.FRAME_SIZE_ERROR)
            if not flags & frames.ACK:
                self._outgoing.append(frame(frames.PING, frames.ACK, 0, payload))
        elif kind == frames.PUSH_PROMISE:
            raise ProtocolError(frames.PROTOCOL_ERROR)
        # PRIORITY and unknown types are ignored. After a GOAWAY the client closes once it has its responses.

    def _on_headers(self, flags: int, stream_id: int, payload: bytes) -> None:
        block = frames.strip_padding(flags, payload)
        if flags & frames.PRIORITY:
            block = block[5:]
        ends = bool(flags & frames.END_STREAM)
        if flags & frames.END_HEADERS:
            self._on_block(stream_id, block, ends=ends)
        else:
            self._partial_block = _PartialHeaderBlock(stream_id, ends, block)

    def _on_continuation(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        block = self._partial_block
        if block is None or kind != frames.CONTINUATION or stream_id != block.stream_id:
            raise ProtocolError(frames.PROTOCOL_ERROR)
        received = block.received + payload
        # An empty CONTINUATION is legal, but no client of this server sends one, and a flood of them is an attack.
        if not payload or len(received) > _MAX_HEADER_BYTES:
            raise ProtocolError(frames.ENHANCE_YOUR_CALM)
        self._partial_block = block._replace(received=received)
        if flags & frames.END_HEADERS:
            self._partial_block = None
            self._on_block(stream_id, received, ends=block.ends)

    def _on_block(self, stream_id: int, block: bytes, *, ends: bool) -> None:
        # Decoded in any case, because the dynamic table must stay in step with the client's.
        head = self._head_cache.get(block) or self._decode(block)
        stream = self._streams.get(stream_id)
        if stream is not None:
            if stream.ended or not ends:
                self._reset_stream(stream_id, frames.STREAM_CLOSED if stream.ended else frames.PROTOCOL_ERROR)
            else:
                self._serve(stream)  # the block holds trailers
            return
        if stream_id % 2 == 0:
            raise ProtocolError(frames.PROTOCOL_ERROR)
        if stream_id <= self._last_stream_id:
            return  # trailers of a closed stream
        self._last_stream_id = stream_id
        if len(self._streams) >= _MAX_STREAMS:
            self._reset_stream(stream_id, frames.REFUSED_STREAM)
            return
        stream = self._streams[stream_id] = Http2Stream(self, stream_id, head, self._initial_window)
        if ends:
            self._serve(stream)

    def _decode(self, block: bytes) -> _RequestHead:
        try:
            fields = {bytes(name): bytes(value) for name, value in self._decoder.decode(block, raw=True)}
        except HPACKError as error:
            raise ProtocolError(frames.COMPRESSION_ERROR) from error
        head = _RequestHead(
            fields.get(b":method", b""),
            fields.get(b":path", b""),
            fields.get(b"authorization"),
            fields.get(b":authority") or fields.get(b"host", b""),
        )
        if len(self._head_cache) >= _MAX_CACHED_HEADS or frames.changes_dynamic_table(block):
            self._head_cache.clear()
        else:
            self._head_cache[block] = head
        return head

    def _on_data(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id == 0:
            raise ProtocolError(frames.PROTOCOL_ERROR)
        self._unacknowledged += len(payload)
        if self._unacknowledged > _WINDOW // 2:
            self._outgoing.append(frames.uint32_frame(frames.WINDOW_UPDATE, 0, self._unacknowledged))
            self._unacknowledged = 0
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        if stream.ended:
            self._reset_stream(stream_id, frames.STREAM_CLOSED)
            return
        piece = frames.strip_padding(flags, payload)
        stream.body = stream.body + piece if stream.body else piece
        if len(stream.body) > MAX_REQUEST_BYTES:
            self._reset_stream(stream_id, frames.ENHANCE_YOUR_CALM)
        elif flags & frames.END_STREAM:
            self._serve(stream)

    def _on_window_update(self, stream_id: int, more: int) -> None:
        if stream_id == 0:
            self._window += more
            self._send_blocked()
            return
        stream = self._streams.get(stream_id)
        if stream is not None:
            stream.window += more
            if stream_id in self._blocked:
                self._send_body(stream)

    def _on_settings(self, payload: bytes) -> None:
        for name, value in frames.read_settings(payload):
            if name == frames.INITIAL_WINDOW_SIZE:
                for stream in self._streams.values():
                    stream.window += value - self._initial_window
                self._initial_window = value
            elif name == frames.HEADER_TABLE_SIZE:
                self._table_update = frames.EMPTY_TABLE_UPDATE
        self._outgoing.append(frame(frames.SETTINGS, frames.ACK, 0, b""))
        self._send_blocked()

    def _serve(self, stream: Http2Stream) -> None:
        stream.ended = True
        response = self._router.handle(stream, *stream.head, stream.body)
        if response is not None:
            self.queue_response(stream, response)

    def _send_blocked(self) -> None:
        for stream in tuple(self._blocked.values()):
            self._send_body(stream)

    def _send_body(self, stream: Http2Stream) -> None:
        """Send as much of the body as the client's windows allow; the rest follows with their updates."""
        stream_id = stream.stream_id
        while stream.outgoing:
            size = min(len(stream.outgoing), stream.window, self._window, frames.MAX_FRAME_BYTES)
            if size <= 0:
                self._blocked[stream_id] = stream
                return
            piece, stream.outgoing = bytes(stream.outgoing[:size]), stream.outgoing[size:]
            flags = 0 if stream.outgoing else frames.END_STREAM
            self._outgoing.append(frame(frames.DATA, flags, stream_id, piece))
            stream.window -= size
            self._window -= size
        self._blocked.pop(stream_id, None)
        del self._streams[stream_id]

    def _reset_stream(self, stream_id: int, code: int) -> None:
        self._outgoing.append(frames.uint32_frame(frames.RST_STREAM, stream_id, code))
        self._drop(self._streams.get(stream_id))

    def _drop(self, stream: Http2Stream | None) -> None:
        """Drop a stream that ends without a response."""
        if stream is not None:
            self._blocked.pop(stream.stream_id, None)
            del self._streams[stream.stream_id]
            self._router.disconnected(stream)
