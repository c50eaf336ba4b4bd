"""Rolling deploys on one port under the calls of bare clients, and what these may have been told wrongly."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg

from syncbeat import SyncbeatClient
from syncbeat.v1 import core_pb2, directory_service_pb2, sync_service_pb2
from syncbeat_devtools.demo.processes import Process, start_process
from syncbeat_devtools.demo.stage import Stage
from tests.support.bare_callers import Told, call_for_ever, call_in_thread, merged, stream_for_ever
from tests.support.fake_clock import wait_until

AIO_CALLERS, BLOCKING_CALLERS, STREAMS = 6, 3, 4
BEFORE_NEXT_S = 0.5


@dataclass
class Deploys:
    """The figures of rolling deploys. `carried_out` are mutations that failed for their caller and yet took place."""

    count: int = 0
    told: Told = field(default_factory=Told)
    carried_out: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)
    held_through: int = 0

    def statuses(self) -> dict[str, dict[str, int]]:
        """Return the number of calls by kind and status."""
        found: dict[str, dict[str, int]] = {}
        for (kind, status), count in sorted(self.told.statuses.items()):
            found.setdefault(kind, {})[status] = count
        return found


async def roll(stage: Stage, port: int, database_url: str, count: int) -> Deploys:
    """Replace the server on a port `count` times by SIGTERM, under load, with a call in flight each time."""
    address, deploys = f"127.0.0.1:{port}", Deploys()
    server = await _start(stage, port, 0)
    token = stage.identity.service_token
    async with SyncbeatClient(address, token=token, tls=False) as backend:
        await _furnish(backend)
    over, over_in_threads = asyncio.Event(), threading.Event()
    async with asyncio.TaskGroup() as group:
        running = [group.create_task(call_for_ever(address, token, f"aio{n}", over)) for n in range(AIO_CALLERS)]
        running += [group.create_task(stream_for_ever(address, token, over)) for _ in range(STREAMS)]
        threads = [
            group.create_task(asyncio.to_thread(call_in_thread, address, token, f"blocking{n}", over_in_threads))
            for n in range(BLOCKING_CALLERS)
        ]
        try:
            for number in range(1, count + 1):
                following = await _start(stage, port, number)
                deploys.held_through += await _end_with_a_call_in_flight(stage, server, database_url, number)
                deploys.count, server = number, following
        finally:
            over.set()
            over_in_threads.set()
    deploys.told = merged([task.result() for task in [*running, *threads]])
    there = await _carried_out(database_url)
    deploys.carried_out, deploys.lost = deploys.told.failed & there, deploys.told.accepted - there
    await server.stop()
    return deploys


async def _start(stage: Stage, port: int, number: int) -> Process:
    settings = {
        **stage.settings,
        "SYNCBEAT_ROLE": "rpc",
        "SYNCBEAT_LISTEN": f"127.0.0.1:{port}",
        "SYNCBEAT_SHARE_PORT": "true",
    }
    return await start_process(["serve"], settings, Path(stage.folder) / f"deploy-{number}.log")


async def _furnish(backend: SyncbeatClient) -> None:
    phone = directory_service_pb2.RegisterDeviceRequest(
        user_id="ann", device_id="phone", platform=directory_service_pb2.PLATFORM_ANDROID
    )
    await backend.directory.RegisterDevice(phone)
    ann = directory_service_pb2.ScopeMember(user_id="ann", role=directory_service_pb2.ROLE_WRITER)
    for scope in ("scope", "held"):
        await backend.directory.AddScopeMembers(
            directory_service_pb2.AddScopeMembersRequest(scope=scope, members=[ann])
        )


async def _end_with_a_call_in_flight(stage: Stage, server: Process, database_url: str, number: int) -> int:
    """End a server while a publish of it waits for a lock; return 1 if that was answered all the same."""
    holder = await asyncpg.connect(database_url)
    try:
        begun = holder.transaction()
        await begun.start()
        await holder.execute("SELECT FROM scopes WHERE scope = 'held' FOR UPDATE")
        change = core_pb2.NewChange(scope="held", key=f"held-{number}", merge_patch_json="1")
        # Over a port of its own a call would not reach the server that is to end: the one that waits is looked for.
        async with SyncbeatClient(server.address, token=stage.identity.service_token, tls=False) as backend:
            publishing = asyncio.ensure_future(
                backend.sync.PublishChanges(sync_service_pb2.PublishChangesRequest(changes=[change]), timeout=8.0)
            )
            await wait_until(lambda: _waits(holder), what="the publish waits for the lock")
            ending = asyncio.ensure_future(server.stop())
            await asyncio.wait([ending], timeout=BEFORE_NEXT_S)
            await begun.rollback()
            await publishing
            assert await ending == 0
    finally:
        await holder.close()
    return 1


async def _waits(conn: asyncpg.Connection[asyncpg.Record]) -> bool:
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    return bool(await conn.fetchval(query))


async def _carried_out(database_url: str) -> set[str]:
    conn = await asyncpg.connect(database_url)
    try:
        rows = await conn.fetch(
            "SELECT key FROM changes WHERE scope = 'scope' UNION ALL SELECT content ->> 'title' FROM notifications"
        )
    finally:
        await conn.close()
    return {row[0] for row in rows}
