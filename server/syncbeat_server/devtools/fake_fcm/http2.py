"""HTTP/2, one connection, on the `h2` state machine."""

from __future__ import annotations

import asyncio

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    RequestReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes

from syncbeat_server.devtools.fake_fcm.answers import Answer
from syncbeat_server.devtools.fake_fcm.http1 import MAX_REQUEST_BYTES, abort_with_reset
from syncbeat_server.devtools.fake_fcm.routes import Router

# What FCM advertises is not documented; 100 is the floor RFC 9113 recommends.
_MAX_STREAMS = 100
# Requests are read from bytes as they are: what h2 would check and copy once more, the router does not depend on.
_CONFIG = H2Configuration(
    client_side=False,
    header_encoding=None,
    validate_inbound_headers=False,
    normalize_inbound_headers=False,
    validate_outbound_headers=False,
    normalize_outbound_headers=False,
)


class Http2Stream:
    """One request and its exchange."""

    __slots__ = ("_connection", "authorization", "body", "host", "method", "outgoing", "stream_id", "url")

    def __init__(self, connection: Http2Connection, stream_id: int) -> None:
        self._connection = connection
        self.stream_id = stream_id
        self.method = self.url = self.host = self.body = self.outgoing = b""
        self.authorization: bytes | None = None

    def answer(self, answer: Answer) -> None:
        """Write a late answer."""
        self._connection.respond(self, answer)
        self._connection.flush()

    def reset(self) -> None:
        """Break the whole connection with an RST."""
        self._connection.reset()


class Http2Connection(asyncio.Protocol):
    """One connection."""

    _transport: asyncio.Transport

    def __init__(self, router: Router) -> None:
        self._router = router
        self._h2 = H2Connection(_CONFIG)
        self._streams: dict[int, Http2Stream] = {}
        self._answering: dict[int, Http2Stream] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the settings."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._router.connections.add(transport)
        self._h2.local_settings.update({SettingCodes.MAX_CONCURRENT_STREAMS: _MAX_STREAMS})
        self._h2.initiate_connection()
        self.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of what waits for this client."""
        self._router.connections.discard(self._transport)
        streams = tuple(self._streams.values())
        self._streams.clear()
        self._answering.clear()
        for stream in streams:
            self._router.gone(stream)

    def data_received(self, data: bytes) -> None:
        """Parse, serve what is complete, and write all answers at once."""
        try:
            events = self._h2.receive_data(data)
        except ProtocolError:
            self.flush()
            self._transport.close()
            return
        for event in events:
            self._on_event(event)
        self.flush()

    def pause_writing(self) -> None:
        """The client does not read: take no more of its requests."""
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        """The client reads again."""
        self._transport.resume_reading()

    def respond(self, stream: Http2Stream, answer: Answer) -> None:
        """Queue an answer; nothing happens when the client has given up the stream."""
        if self._streams.get(stream.stream_id) is not stream or self._transport.is_closing():
            return
        headers = [
            (b":status", b"%d" % answer.status),
            (b"content-type", answer.content_type),
            (b"content-length", b"%d" % len(answer.body)),
            *answer.headers,
        ]
        self._h2.send_headers(stream.stream_id, headers)
        stream.outgoing = answer.body
        self._send_body(stream)

    def reset(self) -> None:
        """Break the connection with an RST."""
        abort_with_reset(self._transport)

    def flush(self) -> None:
        """Write what is queued."""
        data = self._h2.data_to_send()
        if data and not self._transport.is_closing():
            self._transport.write(data)

    def _on_event(self, event: Event) -> None:
        if isinstance(event, DataReceived):
            self._on_data(event)
        elif isinstance(event, RequestReceived):
            self._on_request(event)
        elif isinstance(event, StreamEnded):
            self._on_end(event)
        elif isinstance(event, StreamReset):
            self._forget(event.stream_id)
        elif isinstance(event, WindowUpdated):
            for stream in tuple(self._answering.values()):
                self._send_body(stream)
        elif isinstance(event, ConnectionTerminated):
            self._transport.close()

    def _on_request(self, event: RequestReceived) -> None:
        stream = self._streams[event.stream_id] = Http2Stream(self, event.stream_id)
        for name, value in event.headers:
            if name == b"authorization":
                stream.authorization = bytes(value)
            elif name == b":path":
                stream.url = bytes(value)
            elif name == b":method":
                stream.method = bytes(value)
            elif name in (b":authority", b"host"):
                stream.host = bytes(value)

    def _on_data(self, event: DataReceived) -> None:
        if event.flow_controlled_length:
            self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        stream = self._streams.get(event.stream_id)
        if stream is None:
            return
        stream.body += event.data
        if len(stream.body) > MAX_REQUEST_BYTES:
            self._h2.reset_stream(event.stream_id, ErrorCodes.ENHANCE_YOUR_CALM)
            self._forget(event.stream_id)

    def _on_end(self, event: StreamEnded) -> None:
        stream = self._streams.get(event.stream_id)
        if stream is None:
            return
        answer = self._router.handle(
            stream, stream.method, stream.url, stream.authorization, stream.host, stream.body
        )
        if answer is not None:
            self.respond(stream, answer)

    def _send_body(self, stream: Http2Stream) -> None:
        """Send as much of the body as the client's windows allow; the rest follows when they open."""
        h2, stream_id = self._h2, stream.stream_id
        while stream.outgoing:
            size = min(h2.local_flow_control_window(stream_id), h2.max_outbound_frame_size)
            if size <= 0:
                self._answering[stream_id] = stream
                return
            piece, stream.outgoing = stream.outgoing[:size], stream.outgoing[size:]
            h2.send_data(stream_id, piece, end_stream=not stream.outgoing)
        self._answering.pop(stream_id, None)
        self._streams.pop(stream_id, None)

    def _forget(self, stream_id: int) -> None:
        self._answering.pop(stream_id, None)
        stream = self._streams.pop(stream_id, None)
        if stream is not None:
            self._router.gone(stream)
