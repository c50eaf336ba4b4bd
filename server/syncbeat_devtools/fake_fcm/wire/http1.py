"""HTTP/1.1 connections: keep-alive, pipelining, chunked bodies and `Expect: 100-continue`."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from http import HTTPStatus
from typing import cast

import httptools

from syncbeat_devtools.fake_fcm.responses import JSON_TYPE, Response, json_response
from syncbeat_devtools.fake_fcm.router import Router
from syncbeat_devtools.fake_fcm.wire.buffered_protocol import SharedBufferProtocol

MAX_REQUEST_BYTES = 1 << 20
_MAX_QUEUED = 64
_NO_LINGER = struct.pack("ii", 1, 0)


def abort_with_reset(transport: asyncio.Transport) -> None:
    """Close the connection so that the peer gets an RST: no linger, and nothing more is written."""
    sock = transport.get_extra_info("socket")
    if sock is not None and not transport.is_closing():
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    transport.abort()


def _head(status: int, content_type: bytes) -> bytes:
    phrase = HTTPStatus(status).phrase.encode()
    return b"HTTP/1.1 %d %b\r\ncontent-type: %b\r\ncontent-length: " % (status, phrase, content_type)


_OK_HEAD = _head(200, JSON_TYPE)


class Http1Connection(SharedBufferProtocol):
    """An HTTP/1.1 connection. It is the exchange of its current request; the next one waits for the response."""

    _transport: asyncio.Transport

    def __init__(self, router: Router) -> None:
        super().__init__(router.read_buffer)
        self._router = router
        self._parser = httptools.HttpRequestParser(self)
        self._queued: deque[tuple[bytes, bytes, bytes | None, bytes, bytes, bool]] = deque()
        self._busy = False
        self._keep_alive = True
        self._paused = False
        self._unparsed = 0
        self._url = b""
        self._authorization: bytes | None = None
        self._host = b""
        self._framing = b""
        self._expects = False
        self._body = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start serving."""
        transport = cast(asyncio.Transport, transport)
        self._transport = transport
        self._router.connections.add(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Abandon the request of this client."""
        self._router.connections.discard(self._transport)
        self._queued.clear()
        if self._busy:
            self._router.disconnected(self)

    def data_received(self, data: bytes) -> None:
        """Parse data and serve complete requests."""
        self._unparsed += len(data)
        try:
            self._feed(data)
        except httptools.HttpParserError as error:
            self._reject(400, f"fake-fcm: not HTTP/1.1: {error}")
            return
        if self._unparsed > MAX_REQUEST_BYTES:
            self._reject(413, "fake-fcm: request too large")
            return
        if self._queued and not self._busy:
            self._serve()

    def on_message_begin(self) -> None:
        """Reset the parse state (parser callback)."""
        self._url = self._body = self._host = self._framing = b""
        self._authorization = None
        self._expects = False

    def on_url(self, url: bytes) -> None:
        """Append a piece of the URL (parser callback)."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep the headers that matter (parser callback)."""
        length = len(name)
        if length == 13:
            if name.lower() == b"authorization":
                self._authorization = value
        elif length == 4:
            if name.lower() == b"host":
                self._host = value
        elif length == 6:
            self._expects |= name.lower() == b"expect"
        elif length in (14, 17) and name.lower() in (b"content-length", b"transfer-encoding"):
            self._framing = b"%b: %b\r\n" % (name, value)

    def on_headers_complete(self) -> None:
        """Send `100 Continue` if the client expects it (parser callback)."""
        if self._expects and not self._busy:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """Append a piece of the body (parser callback)."""
        self._body = self._body + body if self._body else body

    def on_message_complete(self) -> None:
        """Queue the complete request (parser callback)."""
        self._unparsed = 0
        parser = self._parser
        self._queued.append(
            (
                parser.get_method(),
                self._url,
                self._authorization,
                self._host,
                self._body,
                parser.should_keep_alive(),
            )
        )

    def respond(self, response: Response) -> None:
        """Write a late response, and serve the requests queued behind it."""
        if self._transport.is_closing():
            return
        self._write(response)
        self._busy = False
        self._serve()

    def reset(self) -> None:
        """Close the connection with an RST."""
        abort_with_reset(self._transport)

    def pause_writing(self) -> None:
        """Stop reading requests from a client that does not read responses."""
        self._paused = True
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        """Resume reading requests."""
        self._paused = False
        self._transport.resume_reading()

    def _feed(self, data: bytes) -> None:
        while data:
            try:
                self._parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                data = self._strip_upgrade() + data[upgrade.args[0] :]

    def _strip_upgrade(self) -> bytes:
        """Return the head of a request that asks for an upgrade, without the upgrade.

        A server may ignore it (RFC 9110, 7.8), as Google's does, but the parser treats the following bytes as another
        protocol.

        Raises:
            httptools.HttpParserError: it is a CONNECT, which cannot be ignored.
        """
        method, url, authorization, host, *_ = self._queued.pop()
        if method == b"CONNECT":
            raise httptools.HttpParserInvalidMethodError("CONNECT")
        self._parser = httptools.HttpRequestParser(self)
        head = b"%b %b HTTP/1.1\r\nhost: %b\r\n%b" % (method, url, host, self._framing)
        return head + (b"authorization: %b\r\n\r\n" % authorization if authorization else b"\r\n")

    def _serve(self) -> None:
        queued = self._queued
        while queued and not self._transport.is_closing():
            method, url, authorization, host, body, self._keep_alive = queued.popleft()
            self._busy = True
            response = self._router.handle(self, method, url, authorization, host, body)
            if response is None:
                break
            self._write(response)
            self._busy = False
        if len(queued) > _MAX_QUEUED:
            self._transport.pause_reading()
        elif not self._paused and not self._transport.is_closing():
            self._transport.resume_reading()

    def _write(self, response: Response) -> None:
        status, body, headers, content_type = response
        head = _OK_HEAD if status == 200 and content_type is JSON_TYPE else _head(status, content_type)
        lines = b"".join(b"%b: %b\r\n" % header for header in headers) if headers else b""
        if not self._keep_alive:
            lines += b"connection: close\r\n"
        self._transport.write(b"%b%d\r\n%b\r\n%b" % (head, len(body), lines, body))
        if not self._keep_alive:
            self._transport.close()

    def _reject(self, status: int, why: str) -> None:
        self._keep_alive = False
        self._queued.clear()
        self._write(json_response({"error": why}, status))
