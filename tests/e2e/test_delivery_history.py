"""Tests histories: what was accepted is delivered, by who holds the lease, and shown once, whatever dies or stops."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import asyncpg
import grpc
import pytest
import redis.asyncio

from syncbeat import SyncbeatClient
from syncbeat.v1 import core_pb2, directory_service_pb2, push_service_pb2, sync_service_pb2
from syncbeat_devtools.demo.devices import eventually
from syncbeat_devtools.demo.stage import Stage, running_stage
from syncbeat_devtools.embedded import EmbeddedStores
from tests.e2e.dying import STEPS
from tests.e2e.test_crashes import DEVICES, register
from tests.e2e.witness import history_of, last_to_claim, watch_database
from tests.support.databases import DatabaseUrls
from tests.support.delivery_counts import states
from tests.support.delivery_history import unended, violations

pytestmark = [pytest.mark.process, pytest.mark.slow]

SERVER_STEPS = [step for step in STEPS if "acceptance" in step]
WAKE_STEPS = [step for step in STEPS if "wake-up" in step]
WORKER_STEPS = [step for step in STEPS if "acceptance" not in step and step not in WAKE_STEPS]
COUNT = 12


@pytest.fixture
async def stage(stores: EmbeddedStores, database_urls: DatabaseUrls, tmp_path: Path) -> AsyncIterator[Stage]:
    await watch_database(database_urls)
    async with running_stage(stores, tmp_path, database_url=database_urls.app_url) as staging:
        yield staging


def sending(number: int) -> push_service_pb2.SendNotificationRequest:
    return push_service_pb2.SendNotificationRequest(
        request_id=f"request-{number}",
        user_ids=core_pb2.UserIds(ids=[f"user-{number % 10}", f"user-{(number + 1) % 10}"]),
        notification=core_pb2.Notification(title=f"Number {number}"),
    )


class Load:
    """Sends under ids until accepted, and keeps what it was promised."""

    def __init__(self, backend: SyncbeatClient) -> None:
        self._backend = backend
        self.accepted: dict[str, int] = {}

    async def send(self, number: int) -> None:
        while True:
            try:
                answer = await self._backend.push.SendNotification(sending(number), timeout=5, wait_for_ready=True)
            except grpc.aio.AioRpcError:
                continue
            self.accepted[answer.notification_id] = answer.delivery_count
            return

    async def run(self, first: int, count: int) -> None:
        await asyncio.gather(*(self.send(first + number) for number in range(count)))


async def dying(stage: Stage, step: str, nth: int, command: str) -> None:
    """Run a process that kills itself at this step, and wait until it has."""
    log = (stage.folder / f"dying-{command}.log").open("ab")
    own = {name: value for name, value in os.environ.items() if not name.startswith("SYNCBEAT_")}
    with log:
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.e2e.dying", step, str(nth), command),
            env={**own, **stage.settings, "SYNCBEAT_ROLE": "rpc", "PYTHONPATH": str(Path(__file__).parents[2])},
            stdout=subprocess.DEVNULL,
            stderr=log,
        )
    try:
        async with asyncio.timeout(30):
            if step == "leases are given back":

                async def busy() -> bool:
                    return bool((await stage.fake_fcm.stats())["requests"])

                assert await eventually(busy, 20.0)
                child.terminate()
            assert await child.wait() == -signal.SIGKILL, "it did not come to this step"
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()


async def finish(stage: Stage, urls: DatabaseUrls, backend: SyncbeatClient, accepted: dict[str, int]) -> None:
    """Let everything end, and check the history."""
    total = sum(accepted.values())

    async def done() -> bool:
        return await states(backend) == {"SENT": total}

    assert await eventually(done, 40.0), await states(backend)
    history = await history_of(stage, urls, accepted)
    assert violations(history) == []
    assert unended(history) == 0


@pytest.mark.parametrize("step", WORKER_STEPS)
async def test_crash_of_a_worker_at_each_step(stage: Stage, database_urls: DatabaseUrls, step: str) -> None:
    server = await stage.start_server()
    async with stage.client(stage.identity.service_token, server) as backend:
        await register(backend)
        load = Load(backend)
        if "lease" in step:
            await stage.fake_fcm.set_latency(8000)  # longer than a lease, and than a drain
        sends = asyncio.ensure_future(load.run(0, COUNT))
        await dying(stage, step, 5 if "sent" in step else 1, "worker")
        await sends
        await stage.fake_fcm.set_latency(0)
        await stage.start_worker()
        await finish(stage, database_urls, backend, load.accepted)


@pytest.mark.parametrize("step", SERVER_STEPS)
async def test_crash_of_a_server_at_each_step(stage: Stage, database_urls: DatabaseUrls, step: str) -> None:
    server, _ = await asyncio.gather(stage.start_server(), stage.start_worker())
    async with stage.client(stage.identity.service_token, server) as backend:
        await register(backend)
        load = Load(backend)
        await dying_server(stage, step, load)
        await load.run(0, COUNT)  # the same ids, at the server that lives
        await finish(stage, database_urls, backend, load.accepted)


@pytest.mark.parametrize("step", [*WAKE_STEPS, "it was sent"])
async def test_crash_of_a_worker_while_resending_unanswered_wake_ups(
    stage: Stage, database_urls: DatabaseUrls, step: str
) -> None:
    stage.settings["SYNCBEAT_RESEND_S"] = "0.5,0.5,0.5"
    server = await stage.start_server()
    async with stage.client(stage.identity.service_token, server) as backend:
        await register(backend)
        notification_id = await wake_all(backend)
        await dying(stage, step, 15 if step == "it was sent" else 1, "worker")
        await stage.start_worker()
        conn = await asyncpg.connect(database_urls.app_url)
        try:

            async def all_tried() -> bool:
                query = "SELECT bool_and(resends = 3 AND state = 'SENT') FROM deliveries"
                return bool(await conn.fetchval(query))

            assert await eventually(all_tried, 30.0)
            query = "SELECT delivery_id::text, attempts - resends - 1 AS repeated FROM deliveries"
            repeated = {row["delivery_id"]: row["repeated"] for row in await conn.fetch(query)}
        finally:
            await conn.close()
        history = await history_of(stage, database_urls, {notification_id: DEVICES})
        assert violations(history) == []
        arrived = Counter(arrival.delivery_id for arrival in history.arrivals)
        assert len(arrived) == DEVICES
        # A first attempt whose lease ran out, on a machine that paused for so long, is made once more.
        again = Counter(c.delivery_id for c in history.changes if (c.before, c.after) == ("IN_FLIGHT", "PENDING"))
        for delivery_id, times in arrived.items():
            assert 2 <= times <= 4 + again[delivery_id]
            assert repeated[delivery_id] <= again[delivery_id]


async def wake_all(backend: SyncbeatClient) -> str:
    """Every device of a scope is to be woken for one change; the notification."""
    writer = directory_service_pb2.ROLE_WRITER
    members = [directory_service_pb2.ScopeMember(user_id=f"user-{n}", role=writer) for n in range(DEVICES)]
    request = directory_service_pb2.AddScopeMembersRequest(scope="all", members=members)
    await backend.directory.AddScopeMembers(request)
    change = core_pb2.NewChange(scope="all", key="topic", merge_patch_json="{}")
    published = await backend.sync.PublishChanges(
        sync_service_pb2.PublishChangesRequest(changes=[change], trigger=core_pb2.SyncTrigger(type="news"))
    )
    return str(published.notification_id)


async def dying_server(stage: Stage, step: str, load: Load) -> None:
    """A server that dies while it accepts what is sent to it; what it answered before is kept by `load`."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("SYNCBEAT_")}
    settings = {**own, **stage.settings, "SYNCBEAT_ROLE": "rpc", "PYTHONPATH": str(Path(__file__).parents[2])}
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.e2e.dying", step, "3", "serve"), env=settings, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    try:
        async with asyncio.timeout(30):
            line = b""
            while b"serving on " not in line:
                line = await child.stdout.readline()
                assert line, "it did not start"
            address = line.decode().strip().partition("serving on ")[2]
            async with SyncbeatClient(address, token=stage.identity.service_token, tls=False) as doomed:
                for number in range(COUNT):
                    try:
                        answer = await doomed.push.SendNotification(sending(number), timeout=5)
                    except grpc.aio.AioRpcError:
                        break
                    load.accepted[answer.notification_id] = answer.delivery_count
            assert await child.wait() == -signal.SIGKILL, "it did not come to this step"
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    assert len(load.accepted) == 2


async def pause_a_worker(stage: Stage, stores: EmbeddedStores, urls: DatabaseUrls) -> None:
    """One that holds leases stops for longer than they last, and goes on as if nothing had been."""
    await stage.fake_fcm.set_latency(4000)  # whoever claims holds for as long
    holder = 0

    async def held() -> bool:
        nonlocal holder
        holder = await last_to_claim(urls)
        return holder > 0

    async def taken_over() -> bool:
        return any("took over deliveries" in log.read_text() for log in sorted(stage.folder.glob("worker-*.log")))

    assert await eventually(held, 20.0)
    os.kill(holder, signal.SIGSTOP)
    try:
        await stage.fake_fcm.set_latency(30)
        assert await eventually(taken_over, 20.0), "its leases did not run out"
    finally:
        os.kill(holder, signal.SIGCONT)


async def restart_postgres(stage: Stage, stores: EmbeddedStores, urls: DatabaseUrls) -> None:
    stores.kill_postgres()
    stores.start_postgres()


async def flush_redis(stage: Stage, stores: EmbeddedStores, urls: DatabaseUrls) -> None:
    async with redis.asyncio.Redis.from_url(stores.redis_url) as client:
        await client.flushall()


async def lose_redis(stage: Stage, stores: EmbeddedStores, urls: DatabaseUrls) -> None:
    stores.kill_redis()


Harm = Callable[[Stage, EmbeddedStores, DatabaseUrls], Awaitable[None]]


@pytest.mark.parametrize("harm", [pause_a_worker, restart_postgres, flush_redis, lose_redis])
async def test_delivery_history_of_two_servers_and_two_workers_under_harm(
    stage: Stage, stores: EmbeddedStores, database_urls: DatabaseUrls, harm: Harm
) -> None:
    first, second = await asyncio.gather(stage.start_server(), stage.start_server())
    await asyncio.gather(stage.start_worker(), stage.start_worker())
    await stage.fake_fcm.set_latency(30)
    async with stage.client(stage.identity.service_token, first, second) as backend:
        await register(backend)
        await stage.fake_fcm.script("*", "accepted-503", times=None, share=0.1, seed=5)
        load = Load(backend)
        try:
            sends = asyncio.ensure_future(load.run(0, 60))
            await harm(stage, stores, database_urls)
            await sends
            await load.run(60, 60)
            await finish(stage, database_urls, backend, load.accepted)
        finally:
            stores.start_redis()
    stats = await stage.fake_fcm.stats()
    assert stats["shown"] == 240
    assert stats["replaced"] > 0, "some came twice, each in its own place"
