"""Callers that list big scopes over and over, as a process of its own: ADDRESS TOKEN SECONDS SCOPE..."""

from __future__ import annotations

import asyncio
import sys
import time

from syncbeat import SyncbeatClient
from syncbeat.v1 import core_pb2
from syncbeat.v1 import sync_service_pb2 as pb


async def list_for(address: str, token: str, seconds: float, scope: str) -> int:
    """List a scope from its start until the time is over: how many octets came."""
    octets, until = 0, time.monotonic() + seconds
    async with SyncbeatClient(address, token=token, tls=False) as client:
        while time.monotonic() < until:
            cursor, more = core_pb2.ScopeCursor(scope=scope), True
            while more and time.monotonic() < until:
                page = await client.sync.ListChanges(pb.ListChangesRequest(cursor=cursor, page_size=1_000), timeout=60)
                cursor, more = page.next_cursor, page.more
                octets += page.ByteSize()
    return octets


async def main() -> None:
    """List every scope at once; prints the octets that came."""
    address, token, seconds, *scopes = sys.argv[1:]
    print("listing", flush=True)
    print(sum(await asyncio.gather(*(list_for(address, token, float(seconds), scope) for scope in scopes))))


if __name__ == "__main__":
    asyncio.run(main())
