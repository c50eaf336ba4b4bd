"""Tests that a relay fails as it says, between a client and a server that answers with what it was sent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.support.tcp_relays import LATENCY_S, SLOW_CLOSE_S, STALL_S, Fault, Relay, relayed

pytestmark = pytest.mark.http

SILENCE_S = 0.3
Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1_000):
            writer.write(data)
    except ConnectionError:
        pass
    finally:
        writer.close()


@asynccontextmanager
async def relay_to_echo() -> AsyncIterator[Relay]:
    server = await asyncio.start_server(_echo, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    try:
        async with relayed(f"{host}:{port}", seed=7) as relay:
            yield relay
    finally:
        server.close()


async def connect(relay: Relay) -> Ends:
    host, _, port = relay.address.partition(":")
    return await asyncio.open_connection(host, int(port))


async def echoed(ends: Ends, text: bytes = b"x") -> float:
    """Send and read it back; seconds that it took."""
    began = time.monotonic()
    ends[1].write(text)
    assert await asyncio.wait_for(ends[0].readexactly(len(text)), 10.0) == text
    return time.monotonic() - began


async def is_silent(ends: Ends) -> bool:
    ends[1].write(b"x")
    try:
        await asyncio.wait_for(ends[0].read(1), SILENCE_S)
    except TimeoutError:
        return True
    return False


async def test_relay_latency_keeps_order_and_ends_with_the_fault() -> None:
    async with relay_to_echo() as relay:
        ends = await connect(relay)
        assert await echoed(ends) < LATENCY_S
        relay.begin(Fault.LATENCY)
        assert await echoed(ends, b"one") >= LATENCY_S
        ends[1].write(b"late")
        await ends[1].drain()
        relay.end()
        ends[1].write(b"soon")
        assert await asyncio.wait_for(ends[0].readexactly(8), 10.0) == b"latesoon"
        ends[1].close()


async def test_relay_jitter_differs_and_stalls_are_few() -> None:
    async with relay_to_echo() as relay:
        ends = await connect(relay)
        relay.begin(Fault.JITTER)
        took = [await echoed(ends) for _ in range(8)]
        assert max(took) - min(took) > 0.05
        relay.begin(Fault.STALLS)
        took = sorted([await echoed(ends) for _ in range(300)])
        assert took[len(took) // 2] < STALL_S <= took[-1]
        ends[1].close()


async def test_relay_reset_ends_open_and_new_connections() -> None:
    async with relay_to_echo() as relay:
        ends = await connect(relay)
        await echoed(ends)
        relay.begin(Fault.RESET)
        with pytest.raises(ConnectionResetError):
            await ends[0].read(1)
        another = await connect(relay)
        another[1].write(b"x")
        with pytest.raises(ConnectionResetError):
            await another[0].read(1)
        relay.end()
        third = await connect(relay)
        await echoed(third)
        third[1].close()


async def test_relay_black_hole_and_half_open_differ_in_new_connections() -> None:
    async with relay_to_echo() as relay:
        first = await connect(relay)
        await echoed(first)
        relay.begin(Fault.HALF_OPEN)
        assert await is_silent(first)
        second = await connect(relay)
        await echoed(second)
        relay.begin(Fault.BLACK_HOLE)
        third = await connect(relay)
        assert await is_silent(second)
        assert await is_silent(third)
        relay.end()
        assert await is_silent(third), "it stays dead"
        fourth = await connect(relay)
        await echoed(fourth)
        for ends in (first, second, third, fourth):
            ends[1].close()


async def test_relay_slow_close_is_told_late() -> None:
    async with relay_to_echo() as relay:
        ends = await connect(relay)
        await echoed(ends)
        began = time.monotonic()
        relay.begin(Fault.SLOW_CLOSE)
        assert await is_silent(ends)
        assert await ends[0].read(1) == b""
        assert time.monotonic() - began >= SLOW_CLOSE_S - 0.1
        another = await connect(relay)
        await echoed(another)
        assert await another[0].read(1) == b""
        ends[1].close()
        another[1].close()
