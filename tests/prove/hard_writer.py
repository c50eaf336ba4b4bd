"""Publishes hard documents, as a process of its own: ADDRESS TOKEN SCOPE COUNT; a line with seconds begins a round."""

from __future__ import annotations

import asyncio
import json
import sys
import time

import grpc

from syncbeat import SyncbeatClient
from syncbeat.v1 import core_pb2
from syncbeat.v1 import sync_service_pb2 as pb
from tests.support.hard_documents import drawn

HOT_KEYS = 20


async def write_for(client: SyncbeatClient, scope: str, left: list[tuple[int, str]], seconds: float) -> list[object]:
    """Publishes one after the other until the time is over: how many were stored, how many refused, the ms of each."""
    stored, refused, took, until = 0, 0, list[float](), time.monotonic() + seconds
    while left and time.monotonic() < until:
        number, text = left.pop()
        # Half of them are merged into what came before.
        key = f"hot-{number % HOT_KEYS}" if number % 2 else f"key-{number}"
        change = core_pb2.NewChange(scope=scope, key=key, merge_patch_json=text)
        began = time.perf_counter()
        try:
            await client.sync.PublishChanges(pb.PublishChangesRequest(changes=[change]), timeout=60)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.INVALID_ARGUMENT:
                raise
            refused += 1
        else:
            stored += 1
        took.append((time.perf_counter() - began) * 1_000)
        if took[-1] > 1_000:
            print(f"{took[-1]:.0f} ms: {key} {len(text)} {text[:60]!r}", file=sys.stderr, flush=True)
    return [stored, refused, took]


async def main() -> None:
    """Plays a round for each line that is read; prints what became of it as JSON."""
    address, token, scope, count = sys.argv[1:]
    left = list(enumerate(drawn(int(count))))
    print("ready", flush=True)
    async with SyncbeatClient(address, token=token, tls=False) as client:
        while line := await asyncio.to_thread(sys.stdin.readline):
            print(json.dumps(await write_for(client, scope, left, float(line))), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
