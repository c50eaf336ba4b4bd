"""A host that vanishes in the middle of its work blocks nobody: a stopped process stands for it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import grpc
import pytest

from syncbeat import SyncbeatClient
from syncbeat.v1 import core_pb2, sync_service_pb2
from syncbeat_devtools.demo.processes import Process
from syncbeat_devtools.demo.stage import Stage, running_stage
from syncbeat_devtools.embedded import EmbeddedStores
from tests.support.databases import DatabaseUrls
from tests.support.fake_clock import wait_until

pytestmark = [pytest.mark.process, pytest.mark.slow]

SCOPES = 60
CALLERS = 30


@pytest.fixture
async def stage(stores: EmbeddedStores, database_urls: DatabaseUrls, tmp_path: Path) -> AsyncIterator[Stage]:
    async with running_stage(stores, tmp_path, database_url=database_urls.app_url) as staging:
        yield staging


async def publish(backend: SyncbeatClient, scope: int, request_id: str = "") -> int:
    change = core_pb2.NewChange(scope=f"scope-{scope}", key="state", merge_patch_json="{}")
    answer = await backend.sync.PublishChanges(
        sync_service_pb2.PublishChangesRequest(request_id=request_id, changes=[change]), timeout=30
    )
    return int(answer.results[0].sequence)


async def publish_at_last(backend: SyncbeatClient, scope: int) -> int:
    """Publish to a scope with as many tries as it takes, within half a minute."""

    async def published() -> int:
        with contextlib.suppress(grpc.aio.AioRpcError):
            return await publish(backend, scope, request_id=f"at-last-{scope}")
        return 0

    return await wait_until(published, timeout_s=30.0, what=f"scope {scope} takes a publish")


class Load:
    """Publishes to one scope after the other until it is ended; knows what was acknowledged."""

    def __init__(self, backend: SyncbeatClient) -> None:
        self._backend = backend
        self._callers: list[asyncio.Task[None]] = []
        self.acknowledged: list[tuple[int, int]] = []

    def begin(self) -> None:
        self._callers = [asyncio.ensure_future(self._call(first)) for first in range(CALLERS)]

    async def _call(self, first: int) -> None:
        number = first
        while True:
            scope = number % SCOPES
            with contextlib.suppress(grpc.aio.AioRpcError):  # a stopped process may answer late, or UNAVAILABLE
                self.acknowledged.append((scope, await publish(self._backend, scope)))
            number += CALLERS

    async def end(self) -> None:
        for caller in self._callers:
            caller.cancel()
        await asyncio.gather(*self._callers, return_exceptions=True)


async def open_transactions(urls: DatabaseUrls, process: Process) -> int:
    """The transactions of a process that have written something, and wait for its next statement."""
    conn = await asyncpg.connect(urls.admin_url)
    try:
        return int(
            await conn.fetchval(
                """SELECT count(*) FROM pg_stat_activity
                   WHERE datname = $1 AND application_name = $2
                     AND state = 'idle in transaction' AND backend_xid IS NOT NULL""",
                urls.name,
                f"syncbeat {process.pid}",
            )
        )
    finally:
        await conn.close()


async def stop_inside_a_transaction(urls: DatabaseUrls, process: Process) -> None:
    """Stop a process that has a transaction open, as a host does that loses its power or its network."""

    async def stopped_inside() -> bool:
        os.kill(process.pid, signal.SIGSTOP)
        # PostgreSQL may be at its statement still; what it is idle in after that stays so.
        for _ in range(3):
            if await open_transactions(urls, process):
                return True
        os.kill(process.pid, signal.SIGCONT)
        return False

    await wait_until(stopped_inside, timeout_s=60.0, what="it was stopped inside a transaction")


async def test_stopped_host_blocks_no_publisher(stage: Stage, database_urls: DatabaseUrls) -> None:
    doomed, other = await asyncio.gather(stage.start_server(), stage.start_server())
    token = stage.identity.service_token
    async with stage.client(token, doomed) as through_it, stage.client(token, other) as backend:
        load = Load(through_it)
        load.begin()
        await wait_until(lambda: len(load.acknowledged) > SCOPES, what="the load runs")
        await stop_inside_a_transaction(database_urls, doomed)
        try:
            # Whoever gives up waiting for its locks gets them with another try.
            sequences = await asyncio.gather(*(publish_at_last(backend, scope) for scope in range(SCOPES)))
        finally:
            os.kill(doomed.pid, signal.SIGCONT)
        known = dict(load.acknowledged)
        assert all(sequences[scope] > sequence for scope, sequence in known.items())
        before = len(load.acknowledged)
        await wait_until(lambda: len(load.acknowledged) > before + SCOPES, what="the stopped one serves again")
        await load.end()
        # Whatever was acknowledged has a sequence of its own.
        assert len(set(load.acknowledged)) == len(load.acknowledged)
