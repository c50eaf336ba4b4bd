"""A thousand JSON documents built to be large or slow, by one writer: others hardly notice, and all can read."""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import grpc
import pytest

from syncbeat import SyncbeatClient
from syncbeat.v1 import core_pb2, sync_service_pb2_grpc
from syncbeat.v1 import sync_service_pb2 as pb
from syncbeat_devtools.demo.stage import Stage
from syncbeat_server.clock import SystemClock
from tests.prove.load import USERS, register

pytestmark = pytest.mark.prove

DOCUMENTS = int(os.environ.get("DOCUMENTS", "1000"))
ROUND_S, PAUSE_S = 3.0, 0.02
SCOPE, WRITER = "scope-0", "user-0"
MOST_TIMES = 2.0

Record = Callable[[str, dict[str, object]], None]


async def timed_ms(call: Awaitable[object]) -> float:
    began = time.perf_counter()
    await call
    return (time.perf_counter() - began) * 1_000


async def others_ms(clients: list[SyncbeatClient]) -> list[float]:
    """Return what each call of the others takes in a round: they publish, list and poll at a steady pace."""
    clock = SystemClock()
    until = clock.monotonic() + ROUND_S

    async def one(scope: str, client: SyncbeatClient) -> list[float]:
        took: list[float] = []
        while clock.monotonic() < until:
            change = core_pb2.NewChange(scope=scope, key="k", merge_patch_json=json.dumps({"n": len(took)}))
            cursor = core_pb2.ScopeCursor(scope=scope)
            for call in (
                partial(client.sync.PublishChanges, pb.PublishChangesRequest(changes=[change]), timeout=60),
                partial(client.sync.ListChanges, pb.ListChangesRequest(cursor=cursor), timeout=60),
                partial(client.sync.GetHint, pb.GetHintRequest(device_id="phone"), timeout=60),
            ):
                took.append(await timed_ms(call()))
                await clock.sleep(PAUSE_S)
        return took

    rounds = await asyncio.gather(*(one(f"scope-{number}", client) for number, client in enumerate(clients, 1)))
    return [took for of_one in rounds for took in of_one]


class Writer:
    """The process of the writer, and what became of its documents."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._asked, self._answers = process.stdin, process.stdout
        self.stored = self.refused = 0
        self.took_ms: list[float] = []

    async def write_for(self, seconds: float) -> None:
        """Has it publish for so long."""
        self._asked.write(f"{seconds}\n".encode())
        stored, refused, took = json.loads(await self._answers.readline())
        self.stored += stored
        self.refused += refused
        self.took_ms += took

    @property
    def done(self) -> bool:
        return self.stored + self.refused == DOCUMENTS


@asynccontextmanager
async def hard_writer(address: str, token: str) -> AsyncIterator[Writer]:
    """A writer that has drawn its documents."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.prove.hard_writer", address, token, SCOPE, str(DOCUMENTS)),
        cwd=Path(__file__).parents[2],
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 20,
    )
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
        yield Writer(process)
    finally:
        process.kill()
        await process.wait()


async def read_all(address: str, token: str) -> dict[str, str]:
    """Every value of the writer's scope, read by a client that gRPC left at its defaults."""
    values: dict[str, str] = {}
    async with grpc.aio.insecure_channel(address) as channel:
        sync = sync_service_pb2_grpc.SyncServiceStub(channel)
        cursor = core_pb2.ScopeCursor(scope=SCOPE)
        while True:
            page = await sync.ListChanges(
                pb.ListChangesRequest(cursor=cursor), metadata=[("authorization", f"Bearer {token}")], timeout=30
            )
            values |= {change.key: change.value_json for change in page.changes}
            cursor = page.next_cursor
            if not page.more:
                return values


def p99(took: list[float]) -> float:
    return statistics.quantiles(took, n=100)[98]


@pytest.mark.timeout(1_200)
async def test_hard_documents_of_one_writer_do_not_slow_others(stage: Stage, record: Record) -> None:
    server = await stage.start_server()
    token = stage.user_token(WRITER)
    alone: list[float] = []
    again: list[float] = []
    beside: list[float] = []
    async with (
        stage.client(stage.identity.service_token, server) as backend,
        hard_writer(server.address, token) as hard,
    ):
        await register(backend)
        users = [stage.client(stage.user_token(f"user-{number}"), server) for number in range(1, USERS)]
        try:
            await others_ms(users)
            while not hard.done:
                alone.append(p99(await others_ms(users)))
                writing = asyncio.create_task(hard.write_for(ROUND_S + 0.5))
                took = await others_ms(users)
                if not writing.done():  # a round that it took part in to its end
                    beside.append(p99(took))
                await writing
                again.append(p99(await others_ms(users)))
        finally:
            for user in users:
                await user.close()
    values = await read_all(server.address, token)
    for value in values.values():
        assert len(value.encode()) <= 1 << 20
        json.loads(value)
    calm, noise = statistics.median(alone), statistics.median(again) / statistics.median(alone)
    figures: dict[str, object] = {
        "documents": DOCUMENTS,
        "stored": hard.stored,
        "refused": hard.refused,
        "keys_read": len(values),
        "octets_read": sum(len(value.encode()) for value in values.values()),
        "document_ms_p50": round(statistics.median(hard.took_ms), 1),
        "document_ms_most": round(max(hard.took_ms), 1),
        "rounds": len(beside),
        "p99_ms_alone": round(calm, 2),
        "p99_ms_alone_again": round(statistics.median(again), 2),
        "p99_ms_beside_writer": round(statistics.median(beside), 2),
    }
    record("documents", figures)
    assert hard.stored > DOCUMENTS // 4
    assert hard.refused > DOCUMENTS // 20
    assert statistics.median(beside) <= MOST_TIMES * calm * max(noise, 1 / noise), figures
