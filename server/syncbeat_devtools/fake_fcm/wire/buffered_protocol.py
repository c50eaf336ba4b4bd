"""How connections read."""

from __future__ import annotations

import asyncio

_BUFFER_BYTES = 1 << 16


def new_buffer() -> memoryview:
    """A buffer that all connections of one event loop can share: what is read is taken out at once."""
    return memoryview(bytearray(_BUFFER_BYTES))


class ReadingProtocol(asyncio.BufferedProtocol):
    """Hands on what was read as bytes.

    A plain `Protocol` would do the same, but makes TLS transports allocate 256 kB for each read, which costs more
    than the request itself.
    """

    def __init__(self, buffer: memoryview) -> None:
        self._buffer = buffer

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where to read to."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """So much was read."""
        self.data_received(bytes(self._buffer[:nbytes]))

    def data_received(self, data: bytes) -> None:
        """Take what was read."""
        raise NotImplementedError
