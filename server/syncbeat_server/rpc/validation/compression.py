"""Decompresses the requests that callers have compressed, within a limit of each method.

grpc-core would decompress a message of any caller up to the largest that any method accepts, before this process sees
it: 1,300 bytes then cost as much as twenty calls. So it hands messages over as they came, and accepts gzip only. No
message begins with gzip's magic number: it would be a field of wire type 7, and there is none.
"""

from __future__ import annotations

import zlib

from syncbeat_server.errors import FieldReason, FieldViolation, InvalidRequest

MAX_REQUEST_BYTES = 1_310_720
"""The largest request, 1 MiB of changes and room for their keys; grpc-core refuses more with RESOURCE_EXHAUSTED."""

COMPRESSION_OPTIONS = (
    ("grpc.per_message_decompression", 0),
    # Bits of identity (0) and gzip (2): of deflate a message could not be told from one that is not compressed.
    ("grpc.compression_enabled_algorithms_bitset", 0b101),
)
GZIP_MAGIC = b"\x1f\x8b"
_GZIP_WINDOW = 31  # zlib: 15 bits, and a header of gzip
_GZIP_OVERHEAD = 1_024  # what gzip adds to bytes that it cannot shorten: 5 in 16,384, and a header with a name


def decompress(data: bytes, most: int) -> bytes:
    """Return the bytes of a message of at most `most` bytes; those that are not compressed unchanged.

    Raises:
        InvalidRequest: it is larger, or damaged.
    """
    if not data.startswith(GZIP_MAGIC):
        return data
    if len(data) > most + _GZIP_OVERHEAD:
        # Blocks of a few bits that hold nothing: 7 ms of the loop for an unknown caller.
        raise InvalidRequest(FieldViolation("", f"at most {most} bytes, decompressed", FieldReason.TOO_LONG))
    stream = zlib.decompressobj(_GZIP_WINDOW)
    try:
        plain = stream.decompress(data, most + 1)
    except zlib.error:
        raise InvalidRequest(
            FieldViolation("", "these bytes are not gzip, as grpc-encoding says", FieldReason.MALFORMED)
        ) from None
    if len(plain) > most:
        raise InvalidRequest(FieldViolation("", f"at most {most} bytes, decompressed", FieldReason.TOO_LONG))
    if not stream.eof or stream.unused_data:
        raise InvalidRequest(FieldViolation("", "these bytes are not one whole gzip stream", FieldReason.MALFORMED))
    return plain
