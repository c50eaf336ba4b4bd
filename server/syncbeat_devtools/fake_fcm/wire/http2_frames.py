"""HTTP/2 frames (RFC 9113, 4 and 6) and the header blocks of responses (RFC 7541).

Responses are encoded without the dynamic table, so that the encoder has no state.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import lru_cache

from syncbeat_devtools.fake_fcm.responses import Response

# Frame types.
DATA, HEADERS, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = (
    0x0,
    0x1,
    0x3,
    0x4,
    0x5,
    0x6,
    0x7,
    0x8,
    0x9,
)
# Flags.
END_STREAM = ACK = 0x1
END_HEADERS, PADDED, PRIORITY = 0x4, 0x8, 0x20
# Settings.
HEADER_TABLE_SIZE, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_HEADER_LIST_SIZE = 0x1, 0x3, 0x4, 0x6
# Error codes.
PROTOCOL_ERROR, STREAM_CLOSED, FRAME_SIZE_ERROR, REFUSED_STREAM = 0x1, 0x5, 0x6, 0x7
COMPRESSION_ERROR, ENHANCE_YOUR_CALM = 0x9, 0xB

FRAME_HEADER_BYTES = 9
MAX_FRAME_BYTES = 16_384  # the limit unless the peer's settings allow more
DEFAULT_WINDOW = 65_535
# A table size update to 0 (RFC 7541, 6.3), which must be sent after the peer has changed the maximum.
EMPTY_TABLE_UPDATE = b"\x20"

_HEAD = struct.Struct(">HBBBI")
_SETTING = struct.Struct(">HI")
_STREAM_MASK = 0x7FFF_FFFF


class ProtocolError(Exception):
    """A protocol error of the peer; the connection ends with this error code."""

    def __init__(self, code: int) -> None:
        super().__init__(f"HTTP/2 error {code}")
        self.code = code


def read_frame_header(data: bytes, at: int) -> tuple[int, int, int, int]:
    """Return payload size, type, flags and stream of the frame at `at`.

    Raises:
        ProtocolError: the payload is larger than allowed.
    """
    high, low, kind, flags, stream_id = _HEAD.unpack_from(data, at)
    size = high << 8 | low
    if size > MAX_FRAME_BYTES:
        raise ProtocolError(FRAME_SIZE_ERROR)
    return size, kind, flags, stream_id & _STREAM_MASK


def frame(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    """Encode a frame."""
    size = len(payload)
    return _HEAD.pack(size >> 8, size & 0xFF, kind, flags, stream_id) + payload


def uint32_frame(kind: int, stream_id: int, number: int) -> bytes:
    """Encode a frame whose payload is one 32-bit number: RST_STREAM or WINDOW_UPDATE."""
    return frame(kind, 0, stream_id, number.to_bytes(4, "big"))


def read_uint32(payload: bytes) -> int:
    """Decode the payload of such a frame.

    Raises:
        ProtocolError: it has another size.
    """
    if len(payload) != 4:
        raise ProtocolError(FRAME_SIZE_ERROR)
    return int.from_bytes(payload, "big") & _STREAM_MASK


def settings_frame(values: dict[int, int]) -> bytes:
    """Encode a SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(*item) for item in values.items()))


def read_settings(payload: bytes) -> Iterator[tuple[int, int]]:
    """Decode the payload of a SETTINGS frame.

    Raises:
        ProtocolError: its size is not a multiple of a setting's.
    """
    if len(payload) % _SETTING.size:
        raise ProtocolError(FRAME_SIZE_ERROR)
    yield from _SETTING.iter_unpack(payload)


def strip_padding(flags: int, payload: bytes) -> bytes:
    """Return the payload of a DATA or HEADERS frame without its padding.

    Raises:
        ProtocolError: there is more padding than payload.
    """
    if not flags & PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise ProtocolError(PROTOCOL_ERROR)
    return payload[1 : len(payload) - payload[0]]


def encode_headers(response: Response) -> bytes:
    """Encode the headers of a response."""
    length = b"%d" % len(response.body)
    # 0x0f 0x0d: a literal whose name is entry 28 of the static table, content-length.
    return b"%b\x0f\x0d%c%b" % (
        _head_fields(response.status, response.content_type, response.headers),
        len(length),
        length,
    )


@lru_cache(maxsize=256)
def _head_fields(status: int, content_type: bytes, headers: tuple[tuple[bytes, bytes], ...]) -> bytes:
    fields = ((b":status", b"%d" % status), (b"content-type", content_type), *headers)
    return b"".join(b"\x00" + _string(name) + _string(value) for name, value in fields)


def _string(text: bytes) -> bytes:
    """Encode a string literal (RFC 7541, 5.2) without Huffman coding."""
    size = len(text)
    if size < 0x7F:
        return bytes((size,)) + text
    length, rest = bytearray((0x7F,)), size - 0x7F
    while rest >= 0x80:
        length.append(rest & 0x7F | 0x80)
        rest >>= 7
    length.append(rest)
    return bytes(length) + text


def changes_dynamic_table(block: bytes) -> bool:
    """Tell if decoding a well-formed header block changes the dynamic table (RFC 7541, 6)."""
    at, end = 0, len(block)
    while at < end:
        first = block[at]
        if first >= 0x80:  # a reference to an entry
            _, at = _number(block, at, 0x7F)
        elif first >= 0x20:  # a literal that becomes an entry, or a new size of the table
            return True
        else:
            name, at = _number(block, at, 0x0F)
            for _ in range(1 if name else 2):
                size, at = _number(block, at, 0x7F)
                at += size
    return False


def _number(block: bytes, at: int, prefix: int) -> tuple[int, int]:
    """Decode an integer (RFC 7541, 5.1). Returns it and the position after it."""
    number = block[at] & prefix
    at += 1
    if number == prefix:
        shift = 0
        while True:
            byte = block[at]
            at += 1
            number += (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
    return number, at
