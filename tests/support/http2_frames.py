"""An HTTP/2 connection frame by frame, to see what a server sends that a client library keeps to itself."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from hpack import Decoder, Encoder
from hyperframe.frame import DataFrame, Frame, GoAwayFrame, HeadersFrame, PingFrame, RstStreamFrame, SettingsFrame

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class FrameConnection:
    """A connection that answers settings, and pings until the first GOAWAY; `seen` has what the server sent."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._encoder, self._decoder = Encoder(), Decoder()
        self.seen: list[str] = []
        self.pings: list[bytes] = []
        """Pings since the first GOAWAY that are not answered yet."""
        self._is_going = False

    def send(self, *frames: Frame) -> None:
        """Send frames."""
        self._writer.write(b"".join(frame.serialize() for frame in frames))

    def begin(self, stream_id: int, path: str, metadata: Sequence[tuple[str, str]]) -> None:
        """Send the headers of a call."""
        headers = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "test")]
        headers += [("content-type", "application/grpc"), ("te", "trailers"), *metadata]
        frame = HeadersFrame(stream_id, self._encoder.encode(headers))
        frame.flags.add("END_HEADERS")
        self.send(frame)

    def finish(self, stream_id: int, message: bytes) -> None:
        """Send the request of a call."""
        frame = DataFrame(stream_id, struct.pack(">BI", 0, len(message)) + message)
        frame.flags.add("END_STREAM")
        self.send(frame)

    def answer_pings(self) -> None:
        """Acknowledge the pings so far."""
        for payload in self.pings:
            frame = PingFrame(0, payload)
            frame.flags.add("ACK")
            self.send(frame)
        self.pings.clear()

    async def read(self) -> None:
        """Note frames until the server closes the connection."""
        while True:
            try:
                head = await self._reader.readexactly(9)
                frame, length = Frame.parse_frame_header(memoryview(head))
                frame.parse_body(memoryview(await self._reader.readexactly(length)))
            except (asyncio.IncompleteReadError, ConnectionError):
                self.seen.append("closed")
                return
            self._note(frame)

    def _note(self, frame: Frame) -> None:
        if isinstance(frame, SettingsFrame):
            if "ACK" not in frame.flags:
                acknowledged = SettingsFrame(0)
                acknowledged.flags.add("ACK")
                self.send(acknowledged)
        elif isinstance(frame, GoAwayFrame):
            last = "max" if frame.last_stream_id == 2**31 - 1 else str(frame.last_stream_id)
            self._is_going = True
            self.seen.append(f"GOAWAY last={last} error={frame.error_code}")
        elif isinstance(frame, PingFrame) and "ACK" not in frame.flags:
            self.pings.append(frame.opaque_data)
            if self._is_going:
                self.seen.append("PING")
            else:
                self.answer_pings()  # it measures the round trip
        elif isinstance(frame, HeadersFrame):
            headers = {str(name): str(value) for name, value in self._decoder.decode(frame.data)}
            told = headers.get("grpc-status")
            self.seen.append(f"{frame.stream_id} HEADERS" if told is None else f"{frame.stream_id} grpc-status={told}")
        elif isinstance(frame, RstStreamFrame):
            self.seen.append(f"{frame.stream_id} RST_STREAM error={frame.error_code}")


@asynccontextmanager
async def frame_connection(address: str) -> AsyncIterator[FrameConnection]:
    """Connect, and read for the block."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    connection = FrameConnection(reader, writer)
    writer.write(_PREFACE)
    connection.send(SettingsFrame(0))
    reading = asyncio.create_task(connection.read())
    try:
        yield connection
    finally:
        reading.cancel()
        await asyncio.wait([reading])
        writer.close()
