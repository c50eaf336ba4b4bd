"""Many deliveries: with everything that goes wrong in a day, and how much memory they take."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

import asyncpg
import psutil
import pytest

from syncbeat import SyncbeatClient
from syncbeat.v1 import core_pb2, push_service_pb2
from syncbeat_devtools.demo.devices import eventually
from syncbeat_devtools.demo.stage import Stage
from tests.support.databases import DatabaseUrls

pytestmark = pytest.mark.prove

USERS = 20_000
EACH = 500
SHARE = 0.02
FAULTS = {"503": 0, "quota": 0, "reset": 0, "slow": 300, "unregistered": 0}
_QUEUED = "('PENDING', 'HELD', 'SCHEDULED', 'IN_FLIGHT')"

Record = Callable[[str, dict[str, object]], None]


async def ask(urls: DatabaseUrls, query: str, *arguments: object) -> list[asyncpg.Record]:
    conn = await asyncpg.connect(urls.admin_url)
    try:
        return list(await conn.fetch(query, *arguments))
    finally:
        await conn.close()


async def add_users(urls: DatabaseUrls) -> None:
    """Users with a phone each."""
    await ask(
        urls,
        """INSERT INTO devices (app_id, user_id, device_id, platform, registration_token, token_digest, token_state,
                                token_registered_at, registered_at, updated_at)
           SELECT 'default', 'user-' || n, 'phone', 'ANDROID', 'token-' || n, sha256(('token-' || n)::bytea), 'ACTIVE',
                  now(), now(), now() FROM generate_series(1, $1::int) n""",
        USERS,
    )


async def send_all(backend: SyncbeatClient, count: int) -> int:
    """Send to everybody in turn until `count` deliveries are accepted; four calls at a time."""
    numbers = iter(range(0, count, EACH))

    async def caller() -> int:
        accepted = 0
        for first in numbers:
            ids = [f"user-{(first + n) % USERS + 1}" for n in range(EACH)]
            answer = await backend.push.SendNotification(
                push_service_pb2.SendNotificationRequest(
                    user_ids=core_pb2.UserIds(ids=ids), notification=core_pb2.Notification(title="t", body="b")
                ),
                timeout=30,
            )
            accepted += answer.delivery_count
        return accepted

    return sum(await asyncio.gather(*(caller() for _ in range(4))))


async def until_ended(urls: DatabaseUrls, wait_s: float) -> bool:
    async def ended() -> bool:
        return not await ask(urls, f"SELECT 1 FROM deliveries WHERE state IN {_QUEUED} LIMIT 1")

    return await eventually(ended, wait_s)


@pytest.mark.timeout(1800)
async def test_soak(stage: Stage, database_urls: DatabaseUrls, record: Record) -> None:
    count = int(os.environ.get("SOAK_SENDS", "200000"))
    stage.settings |= {"SYNCBEAT_PUSH_RAMP_S": "5", "SYNCBEAT_DELIVERY_LEASE_S": "10"}
    await stage.start_server()
    await asyncio.gather(stage.start_worker(), stage.start_worker())
    await add_users(database_urls)
    for seed, (kind, delay_ms) in enumerate(FAULTS.items()):
        await stage.fake_fcm.script("*", kind, times=None, share=SHARE, seed=seed, delay_ms=delay_ms)
    async with stage.client(stage.identity.service_token) as backend:
        accepted = await send_all(backend, count)
    assert await until_ended(database_urls, 1500.0)
    rows = await ask(database_urls, "SELECT state, reason, count(*) AS n FROM deliveries GROUP BY 1, 2 ORDER BY 1, 2")
    counts = {f"{row['state']} {row['reason']}".strip(): row["n"] for row in rows}
    stats = await stage.fake_fcm.stats()
    sent = counts.get("SENT", 0)
    # Not eligible: whose token FCM called dead, then or before it was their turn.
    tokenless = counts.get("DEAD NO_TOKEN", 0) + counts.get("SUPPRESSED NO_TOKEN", 0)
    unreachable = tokenless + counts.get("DEAD UNREGISTERED", 0)
    tried = accepted - tokenless
    figures: dict[str, object] = {
        "command": "make prove ARGS='-k test_soak'",
        "accepted": accepted,
        "share_of_each_fault": SHARE,
        "faults": stats["faults"],
        "deliveries": counts,
        "lost": accepted - sum(counts.values()),
        "sent_of_eligible": round(sent / (accepted - unreachable), 6),
        "http_calls_per_message": round(stats["requests"] / tried, 4),
        "shown": stats["shown"],
        "sent_twice_replaced_in_place": stats["replaced"],
    }
    record("soak", figures)
    assert figures["lost"] == 0
    assert sent / (accepted - unreachable) >= 0.999
    assert stats["requests"] / tried <= 1.15
    assert stats["shown"] == sent


@pytest.mark.timeout(1800)
async def test_memory_is_flat(stage: Stage, database_urls: DatabaseUrls, record: Record) -> None:
    count = int(os.environ.get("SOAK_DELIVERIES", "1000000"))
    stage.settings |= {"SYNCBEAT_PUSH_RAMP_S": "0", "SYNCBEAT_DELIVERY_LEASE_S": "10"}
    server, worker = await asyncio.gather(stage.start_server(), stage.start_worker())
    await add_users(database_urls)
    sizes: list[dict[str, float]] = []
    async with stage.client(stage.identity.service_token) as backend:
        for _ in range(10):
            assert await send_all(backend, count // 10) == count // 10
            assert await until_ended(database_urls, 600.0)
            sizes.append({name: _mib(pid) for name, pid in (("server", server.pid), ("worker", worker.pid))})
    rows = await ask(database_urls, "SELECT state, count(*) AS n FROM deliveries GROUP BY 1")
    counts = {row["state"]: row["n"] for row in rows}
    record(
        "memory",
        {
            "command": "make prove ARGS='-k memory_is_flat'",
            "deliveries": counts,
            "rss_mib_after_each_tenth": sizes,
        },
    )
    assert counts == {"SENT": count}
    for name in ("server", "worker"):
        assert sizes[-1][name] <= sizes[1][name] * 1.1, (name, sizes)


def _mib(pid: int) -> float:
    return round(float(psutil.Process(pid).memory_info().rss) / (1 << 20), 1)
