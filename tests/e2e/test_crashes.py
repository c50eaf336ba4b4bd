"""Processes die at the worst moment; what was accepted arrives, and is shown once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from syncbeat import SyncbeatClient, explain
from syncbeat.v1 import core_pb2, directory_service_pb2, error_reason_pb2, push_service_pb2, sync_service_pb2
from syncbeat_devtools.demo.devices import StreamingDevice, eventually
from syncbeat_devtools.demo.stage import Stage, running_stage
from syncbeat_devtools.embedded import EmbeddedStores
from tests.support.databases import DatabaseUrls
from tests.support.delivery_counts import states

pytestmark = [pytest.mark.process, pytest.mark.slow]

DEVICES = 10

# For tests in which nobody dies who holds a lease: it does not run out while the machine pauses.
LONG_LEASE_S = "60"


@pytest.fixture
async def stage(stores: EmbeddedStores, database_urls: DatabaseUrls, tmp_path: Path) -> AsyncIterator[Stage]:
    async with running_stage(stores, tmp_path, database_url=database_urls.app_url) as staging:
        yield staging


async def register(backend: SyncbeatClient) -> None:
    """One device for each user."""
    for number in range(DEVICES):
        await backend.directory.RegisterDevice(
            directory_service_pb2.RegisterDeviceRequest(
                user_id=f"user-{number}",
                device_id="phone",
                platform=directory_service_pb2.PLATFORM_ANDROID,
                registration_token=f"token-{number}",
            )
        )


def sending(number: int) -> push_service_pb2.SendNotificationRequest:
    """The same request every time it is asked for."""
    return push_service_pb2.SendNotificationRequest(
        request_id=f"request-{number}",
        user_ids=core_pb2.UserIds(ids=[f"user-{number % DEVICES}"]),
        notification=core_pb2.Notification(title=f"Number {number}"),
    )


async def all_sent(backend: SyncbeatClient, count: int) -> bool:
    """Return whether that many deliveries, and no others, came to be SENT."""

    async def sent() -> bool:
        return await states(backend) == {"SENT": count}

    return await eventually(sent, 40.0)


async def test_crash_of_a_server_keeps_accepted_pushes_and_retries_double_nothing(stage: Stage) -> None:
    count = 120
    stage.settings["SYNCBEAT_DELIVERY_LEASE_S"] = LONG_LEASE_S
    first, second = await asyncio.gather(stage.start_server(), stage.start_server())
    token = stage.identity.service_token
    async with stage.client(token, first) as doomed, stage.client(token, second) as backend:
        await register(backend)
        calls = [asyncio.ensure_future(doomed.push.SendNotification(sending(n), timeout=5)) for n in range(count)]
        await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        await first.kill()
        answers = await asyncio.gather(*calls, return_exceptions=True)
        accepted = {
            n: answer.notification_id
            for n, answer in enumerate(answers)
            if isinstance(answer, push_service_pb2.SendNotificationResponse)
        }
        assert accepted, "the server was killed before it answered anything"
        # The caller cannot know what became of the others: it sends everything again under the same ids.
        again = await asyncio.gather(*(backend.push.SendNotification(sending(n)) for n in range(count)))
        assert all(again[n].notification_id == known and again[n].replayed for n, known in accepted.items())
        await stage.start_worker()
        assert await all_sent(backend, count), await states(backend)
    stats = await stage.fake_fcm.stats()
    assert (stats["shown"], stats["replaced"]) == (count, 0)


async def test_crash_of_workers_loses_nothing_and_shows_nothing_twice(stage: Stage) -> None:
    count = 300
    server = await stage.start_server()
    async with stage.client(stage.identity.service_token, server) as backend:
        await register(backend)
        await stage.fake_fcm.set_latency(40)
        await asyncio.gather(*(backend.push.SendNotification(sending(n)) for n in range(count)))
        for kill in range(3):
            worker = await stage.start_worker()
            least = 40 * (kill + 1)

            async def some_accepted(least: int = least) -> bool:
                return bool((await stage.fake_fcm.stats())["accepted"] >= least)

            assert await eventually(some_accepted)
            await worker.kill()
        await stage.start_worker()
        assert await all_sent(backend, count), await states(backend)
    stats = await stage.fake_fcm.stats()
    assert stats["shown"] == count
    assert stats["accepted"] == count + stats["replaced"]


async def test_sigterm_returns_leases_and_drains_streams(stage: Stage) -> None:
    stage.settings["SYNCBEAT_DELIVERY_LEASE_S"] = LONG_LEASE_S
    first, second = await asyncio.gather(stage.start_server(), stage.start_server())
    async with (
        stage.client(stage.identity.service_token, second) as backend,
        stage.client(stage.user_token("user-1"), first, second) as user,
    ):
        await register(backend)
        writer = directory_service_pb2.ScopeMember(user_id="user-1", role=directory_service_pb2.ROLE_WRITER)
        await backend.directory.AddScopeMembers(
            directory_service_pb2.AddScopeMembersRequest(scope="scope", members=[writer])
        )
        stream = StreamingDevice(user, "phone")
        assert await stream.wait_open()
        await stage.fake_fcm.script("token-2", "hang")
        worker = await stage.start_worker()
        sent = await backend.push.SendNotification(sending(2))

        async def hangs() -> bool:
            return bool((await stage.fake_fcm.stats())["hanging"])

        assert await eventually(hangs)
        assert list(await asyncio.gather(first.stop(), worker.stop())) == [0, 0]
        wanted = push_service_pb2.DeliveryFilter(notification_id=sent.notification_id)
        found = await backend.push.ListDeliveries(push_service_pb2.ListDeliveriesRequest(filter=wanted))
        assert [delivery.state for delivery in found.deliveries] == [push_service_pb2.DELIVERY_STATE_PENDING]
        change = core_pb2.NewChange(scope="scope", key="k", merge_patch_json="1")
        await backend.sync.PublishChanges(sync_service_pb2.PublishChangesRequest(changes=[change]))
        assert await stream.wait_for(1), "the stream did not go on at the other server"
        await stream.close()


async def test_redis_outage_interrupts_nothing_and_recovers(stage: Stage, stores: EmbeddedStores) -> None:
    server, _ = await asyncio.gather(stage.start_server(), stage.start_worker())
    async with stage.client(stage.identity.service_token, server) as backend:
        await register(backend)
        stores.kill_redis()
        try:
            await asyncio.gather(*(backend.push.SendNotification(sending(n)) for n in range(20)))
            change = core_pb2.NewChange(scope="scope", key="k", merge_patch_json="1")
            await backend.sync.PublishChanges(sync_service_pb2.PublishChangesRequest(changes=[change]))
            hint = sync_service_pb2.GetHintRequest(user_id="user-1", device_id="phone")
            assert (await backend.sync.GetHint(hint)).hint.poll_interval.seconds > 0
            assert await all_sent(backend, 20), await states(backend)
        finally:
            stores.start_redis()
        await asyncio.gather(*(backend.push.SendNotification(sending(n)) for n in range(20, 40)))
        assert await all_sent(backend, 40), await states(backend)


async def test_postgres_outage_is_reported_and_loses_nothing_accepted(stage: Stage, stores: EmbeddedStores) -> None:
    server, _ = await asyncio.gather(stage.start_server(), stage.start_worker())
    async with stage.client(stage.identity.service_token, server) as backend:
        await register(backend)
        await stage.fake_fcm.set_latency(100)
        await asyncio.gather(*(backend.push.SendNotification(sending(n)) for n in range(40)))
        problems: set[tuple[grpc.StatusCode, int]] = set()

        async def accepted() -> bool:
            try:
                await backend.push.SendNotification(sending(40))
            except grpc.aio.AioRpcError as error:
                problems.add((error.code(), explain(error).reason))
                return False
            return True

        stores.kill_postgres()
        try:
            assert not await accepted()
        finally:
            stores.start_postgres()
        assert await eventually(accepted)
        assert problems == {(grpc.StatusCode.UNAVAILABLE, error_reason_pb2.ERROR_REASON_DEPENDENCY_DOWN)}
        assert await all_sent(backend, 41), await states(backend)
    stats = await stage.fake_fcm.stats()
    assert stats["shown"] == 41
