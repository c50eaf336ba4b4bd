"""Redis fails over under load, by Sentinel and behind one address: the service follows, and loses nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import grpc
import pytest
import redis

from syncbeat import SyncbeatClient
from syncbeat.v1 import auth_service_pb2, core_pb2, directory_service_pb2, push_service_pb2
from syncbeat_devtools.demo.devices import StreamingDevice
from syncbeat_devtools.demo.stage import Stage
from tests.prove.load import settled
from tests.prove.valkeys import DOWN_AFTER_S, Pair, running_pair
from tests.prove.writers import Written, differences
from tests.support.databases import DatabaseUrls
from tests.support.fake_clock import wait_until
from tests.support.valkeys import PRIMARY, Valkey, moving_address

pytestmark = pytest.mark.prove

SCOPES = 6
PAUSE_S = 0.05  # with six writers 120 publishes a second at most
BEFORE = 200
# A stream's presence that was refused is written with the next refresh, 10 s later; the rest is for a busy machine.
FOLLOWED_S = 25.0
# Sentinels agree that it is down, choose one of them, and that one promotes the replica.
PROMOTED_S = DOWN_AFTER_S + 15.0

Record = Callable[[str, dict[str, object]], None]


class Fleet:
    """Two servers and a worker on one Redis, and what tells whether they hear each other through it."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.written, self.over = Written(pause_s=PAUSE_S), asyncio.Event()
        self.notifications = 0
        self._load: list[asyncio.Future[None]] = []
        self._clients: list[SyncbeatClient] = []
        self._streams: list[StreamingDevice] = []

    async def start(self) -> None:
        """Start all, have the load go on, and return when it has all that a failover can take away."""
        await self.stage.start_all()
        self._clients = [self.stage.client(self.stage.identity.service_token, server) for server in self.stage.servers]
        await self._clients[0].directory.RegisterDevice(
            directory_service_pb2.RegisterDeviceRequest(
                user_id="pushed",
                device_id="phone",
                platform=directory_service_pb2.PLATFORM_ANDROID,
                registration_token="token-pushed",
            )
        )
        self._load = [
            asyncio.ensure_future(self.written.write(self._clients[number % 2], f"scope-{number}", "key", self.over))
            for number in range(SCOPES)
        ]
        await wait_until(lambda: self.written.count >= BEFORE, 60.0, "publishes are acknowledged")

    async def open_stream(self, user: str) -> None:
        """A device of this user watches, at the second server."""
        client = self.stage.client(self.stage.user_token(user), self.stage.servers[1])
        await self._clients[0].directory.RegisterDevice(
            directory_service_pb2.RegisterDeviceRequest(
                user_id=user, device_id="phone", platform=directory_service_pb2.PLATFORM_ANDROID
            )
        )
        device = StreamingDevice(client, "phone")
        self._clients.append(client)
        self._streams.append(device)
        assert await device.wait_open()

    async def hear_each_other(self) -> bool:
        """Return whether each server hears the other's answer, which comes through Redis."""
        try:
            answers = [
                await client.auth.GetTokenCacheStats(auth_service_pb2.GetTokenCacheStatsRequest(), timeout=5)
                for client in self._clients[:2]
            ]
        except grpc.aio.AioRpcError:
            return False
        return all(len(answer.processes) == 2 for answer in answers)

    async def works_with(self, primary: Valkey, user: str, since: float) -> bool:
        """Return whether wake-ups, presence (of a user whose stream is new) and rates (taken since) work here."""
        try:
            with primary.client() as client:
                present = any(user.encode() in key for key in client.scan_iter("*streams:*", count=1_000))
                taken = [float(client.hget(key, "at") or 0) for key in client.scan_iter("*rate:*", count=1_000)]
        except redis.RedisError:
            return False
        if max(taken, default=0.0) > since:
            return present and await self.hear_each_other()
        await self._notify()
        return False

    async def _notify(self) -> None:
        request = push_service_pb2.SendNotificationRequest(
            user_ids=core_pb2.UserIds(ids=["pushed"]), notification=core_pb2.Notification(title="t", body="b")
        )
        await self._clients[0].push.SendNotification(request, timeout=10)
        self.notifications += 1

    async def stop(self) -> dict[str, int]:
        """End the load; the counts of deliveries once none waits."""
        self.over.set()
        await asyncio.gather(*self._load)
        counts = await settled(self._clients[0])
        for device in self._streams:
            await device.close()
        for client in self._clients:
            await client.close()
        return counts


async def _fail_over(fleet: Fleet, pair: Pair, harm: Callable[[], None]) -> dict[str, float]:
    """Do the harm, and measure in seconds how long it takes until all works on what was the replica."""
    await fleet.open_stream("before")
    await wait_until(lambda: fleet.works_with(pair.primary, "before", 0.0), 30.0, "all works on the primary")
    await wait_until(pair.in_step, 30.0, "the replica has all")
    moment, since = time.monotonic(), time.time()
    harm()
    await wait_until(pair.replica.is_primary, PROMOTED_S, "the replica leads")
    promoted = time.monotonic()
    await fleet.open_stream("after")
    await wait_until(lambda: fleet.works_with(pair.replica, "after", since), FOLLOWED_S, "all works on the new primary")
    return {
        "replica_led_after_s": round(promoted - moment, 1),
        "followed_after_another_s": round(time.monotonic() - promoted, 1),
    }


async def _end(fleet: Fleet, urls: DatabaseUrls, record: Record, name: str, figures: dict[str, float]) -> None:
    counts = await fleet.stop()
    found = await differences(urls.admin_url, fleet.written)
    record(
        f"redis-{name}",
        {
            "command": f"make prove ARGS='-k redis_failover_by_{name.partition('-')[0]}'",
            **figures,
            "acknowledged": fleet.written.count,
            **found,
            "failed_calls_repeated": dict(fleet.written.failures),
            "notifications_accepted": fleet.notifications,
            "deliveries": counts,
        },
    )
    assert found == {"lost": 0, "doubled": 0}
    # Publishing needs no Redis.
    assert fleet.written.failures == {}
    assert sum(counts.values()) == fleet.notifications
    assert counts.keys() <= {"SENT", "SUPPRESSED"}


def _stop(pair: Pair) -> None:
    """Its host hangs: connections stay open, and nothing answers."""
    if (pid := pair.primary.server.pid) is not None:
        os.kill(pid, signal.SIGSTOP)


def _ask_sentinel(pair: Pair) -> None:
    """Somebody maintains the primary, which lives on as a replica."""
    with pair.sentinels[0].client() as client:
        client.sentinel_failover(PRIMARY)


HARMS: dict[str, Callable[[Pair], None]] = {
    "killed": lambda pair: pair.primary.server.kill(),
    "stopped": _stop,
    "planned": _ask_sentinel,
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", HARMS)
async def test_redis_failover_by_sentinel_is_followed(
    how: str, stage: Stage, database_urls: DatabaseUrls, tmp_path: Path, record: Record
) -> None:
    with running_pair(tmp_path, sentinels=True) as pair:
        await wait_until(pair.watched, 60.0, "the sentinels know each other and the replica")
        stage.settings["SYNCBEAT_REDIS_URL"] = pair.url()
        fleet = Fleet(stage)
        await fleet.start()
        figures = await _fail_over(fleet, pair, partial(HARMS[how], pair))
        await _end(fleet, database_urls, record, f"sentinel-{how}", figures)


@pytest.mark.timeout(300)
async def test_redis_failover_by_address_is_followed(
    stage: Stage, database_urls: DatabaseUrls, tmp_path: Path, record: Record
) -> None:
    with running_pair(tmp_path, sentinels=False) as pair:
        async with moving_address(pair.primary) as address:
            stage.settings["SYNCBEAT_REDIS_URL"] = address.url
            fleet = Fleet(stage)
            await fleet.start()

            def demote() -> None:  # the primary lives on and keeps its connections: it is a replica now
                pair.replica.follow(None)
                pair.primary.follow(pair.replica)
                address.target = pair.replica.port

            figures = await _fail_over(fleet, pair, demote)
            # Who only publishes is never refused by a replica, and would speak to nobody there for ever.
            await wait_until(lambda: _callers(pair.primary) == 0, FOLLOWED_S, "nobody commands the former primary")
            await _end(fleet, database_urls, record, "address", figures)


def _callers(valkey: Valkey) -> int:
    """Count connections that give it commands, beside the one that asks; those that listen hear its primary too."""
    with valkey.client() as client:
        return len(client.client_list(_type="normal")) - 1
