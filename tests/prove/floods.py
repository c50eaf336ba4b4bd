"""A flood of one kind from four connections, as a process of its own: ADDRESS TOKEN KIND SECONDS; prints how many."""

from __future__ import annotations

import asyncio
import gzip
import sys
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

from syncbeat.v1 import sync_service_pb2
from syncbeat_server.clock import SystemClock
from tests.support.raw_http2 import USUAL_WINDOW, RawConnection, grpc_message, raw_connection

CONNECTIONS = 4
_PUBLIC, _HINT, _WATCH_HINTS = (
    "/syncbeat.v1.AuthService/RefreshSession",
    "/syncbeat.v1.SyncService/GetHint",
    "/syncbeat.v1.SyncService/WatchHints",
)
_CHECK, _WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"
_BOMB = grpc_message(gzip.compress(b"\x0a\x01\xff" + b"\x78\x01" * 650_000), compressed=True)
_DEVICE = grpc_message(sync_service_pb2.GetHintRequest(device_id="phone").SerializeToString())
_TURN_S = 0.005


@dataclass(frozen=True)
class Flood:
    """Calls of one kind. `most` are under way at a time on a connection; None: each is reset at once."""

    path: str
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    whole: bool = True
    window: int = USUAL_WINDOW
    most: int | None = 100
    each_turn: int = 50


def floods(token: str) -> dict[str, Flood]:
    """Every kind, the base line first."""
    known, gzipped = (("authorization", f"Bearer {token}"),), (("grpc-encoding", "gzip"),)
    forged = (("authorization", f"Bearer {token[:-4]}AAAA"),)
    return {
        "hints": Flood(_HINT, _DEVICE, known),
        "bombs": Flood(_PUBLIC, _BOMB, gzipped, each_turn=4),
        "half": Flood(_PUBLIC, grpc_message(b"x" * 60_000)[:50_000], whole=False, each_turn=10),
        "forged": Flood(_HINT, _DEVICE, forged),
        "garbage": Flood(_CHECK, grpc_message(b"\xff" * 1_000)),
        "watches": Flood(_WATCH, grpc_message(b"")),
        "deaf watches": Flood(_WATCH, grpc_message(b""), window=0),
        "deaf streams": Flood(_WATCH_HINTS, _DEVICE, known, window=0),
        "resets": Flood(_CHECK, grpc_message(b""), most=None),
        "resets of half": Flood(_PUBLIC, b"", whole=False, most=None),
    }


async def pour(raw: RawConnection, flood: Flood, is_over: Callable[[], bool]) -> int:
    """Call until the time is over, or the connection: how often."""
    block, started = raw.request_headers(flood.path, flood.headers), 0
    while not (is_over() or raw.closed.is_set()):
        raw.answers = {stream: answer for stream, answer in raw.answers.items() if not answer.is_over}
        room = flood.each_turn if flood.most is None else min(flood.each_turn, flood.most - len(raw.answers))
        for _ in range(room):
            stream = raw.start_block(block, flood.body, end=flood.whole)
            if flood.most is None:
                raw.reset(stream)
        started += room
        await raw.flush()
        await SystemClock().sleep(_TURN_S)
    return started


async def main() -> None:
    """Pour from all connections; one that ends is opened anew."""
    address, token, kind, seconds = sys.argv[1:]
    flood, until = floods(token)[kind], time.monotonic() + float(seconds)

    async def from_one() -> int:
        started = 0
        while time.monotonic() < until:
            async with AsyncExitStack() as stack:
                raw = await stack.enter_async_context(raw_connection(address, flood.window))
                started += await pour(raw, flood, lambda: time.monotonic() >= until)
        return started

    print("pouring", flush=True)
    print(sum(await asyncio.gather(*(from_one() for _ in range(CONNECTIONS)))))


if __name__ == "__main__":
    asyncio.run(main())
