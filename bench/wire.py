"""Frames of a unary gRPC call over HTTP/2 (RFC 9113), encoded in advance for calls after a connection's first.

The headers that all calls of a connection share are in the dynamic table of HPACK (RFC 7541) and cost one byte each;
the token is not, because every call has another.
"""

from __future__ import annotations

from dataclasses import dataclass

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK = 0x1, 0x1

_END_HEADERS = 0x4
_INITIAL_WINDOW_SIZE = 4
_WINDOW = (1 << 31) - 1
_DEFAULT_WINDOW = 65_535
_FIRST_DYNAMIC_INDEX = 62
_POST, _HTTP = b"\x83", b"\x86"  # of the static table


@dataclass(frozen=True, slots=True)
class Call:
    """A call in three parts, between which its stream's id is inserted."""

    head: bytes
    middle: bytes
    tail: bytes

    def frames(self, stream_id: int) -> bytes:
        """Return its frames on one stream."""
        stream = stream_id.to_bytes(4, "big")
        return b"".join((self.head, stream, self.middle, stream, self.tail))


def frame(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    """Encode a frame."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream_id.to_bytes(4, "big") + payload


def connection_preface() -> bytes:
    """Return the start of a connection, with windows so wide that responses never wait for us."""
    setting = _INITIAL_WINDOW_SIZE.to_bytes(2, "big") + _WINDOW.to_bytes(4, "big")
    widen = (_WINDOW - _DEFAULT_WINDOW).to_bytes(4, "big")
    return PREFACE + frame(SETTINGS, 0, 0, setting) + frame(WINDOW_UPDATE, 0, 0, widen)


def settings_ack() -> bytes:
    """Return the acknowledgement of the server's settings."""
    return frame(SETTINGS, ACK, 0, b"")


def ping_ack(payload: bytes) -> bytes:
    """Return the response to a ping."""
    return frame(PING, ACK, 0, payload)


def encode_call(path: str, token: str, message: bytes, *, first: bool = False) -> Call:
    """Encode a call of `path`. The first of a connection fills the table that the others refer to."""
    same = [(":path", path), (":authority", "bench"), ("te", "trailers"), ("content-type", "application/grpc")]
    if first:
        fixed = b"".join(b"\x40" + _text(name) + _text(value) for name, value in same)
    else:
        # The newest entry has the lowest index, and a strict server wants pseudo headers first.
        fixed = bytes(0x80 | (_FIRST_DYNAMIC_INDEX + place) for place in reversed(range(len(same))))
    block = _POST + _HTTP + fixed + b"\x00" + _text("authorization") + _text(f"Bearer {token}")
    body = b"\x00" + len(message).to_bytes(4, "big") + message
    return Call(
        head=len(block).to_bytes(3, "big") + bytes((HEADERS, _END_HEADERS)),
        middle=block + len(body).to_bytes(3, "big") + bytes((DATA, END_STREAM)),
        tail=body,
    )


def _text(text: str) -> bytes:
    octets = text.encode()
    return _integer(len(octets), 7) + octets


def _integer(value: int, prefix_bits: int) -> bytes:
    # RFC 7541, section 5.1.
    most = (1 << prefix_bits) - 1
    if value < most:
        return bytes((value,))
    rest, out = value - most, [most]
    while rest >= 128:
        out.append(rest & 0x7F | 0x80)
        rest >>= 7
    return bytes((*out, rest))
