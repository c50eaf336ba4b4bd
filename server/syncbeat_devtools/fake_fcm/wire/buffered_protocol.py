"""A protocol that reads into a shared buffer."""

from __future__ import annotations

import asyncio

_BUFFER_BYTES = 1 << 16


def new_read_buffer() -> memoryview:
    """Return a buffer that all connections of one event loop can share, since data is copied out of it at once."""
    return memoryview(bytearray(_BUFFER_BYTES))


class SharedBufferProtocol(asyncio.BufferedProtocol):
    """Passes received data on as bytes.

    A plain `Protocol` would do the same, but makes TLS transports allocate 256 kB for each read, which costs more
    than the request itself.
    """

    def __init__(self, buffer: memoryview) -> None:
        self._buffer = buffer

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return the buffer to read into."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Pass on the `nbytes` that were read."""
        self.data_received(bytes(self._buffer[:nbytes]))

    def data_received(self, data: bytes) -> None:
        """Handle received data."""
        raise NotImplementedError
