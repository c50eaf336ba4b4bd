"""Connects to an HTTP endpoint without a client, to send what no client would."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[Streams]:
    """Hold a connection to this port of this machine."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def is_over(streams: Streams) -> bytes:
    """Read until the connection ends."""
    with suppress(ConnectionError):
        return await asyncio.wait_for(streams[0].read(), 20)
    return b""
