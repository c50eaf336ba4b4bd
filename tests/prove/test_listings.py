"""Listings of big values at once do not hold up other users' polls."""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import asyncpg
import pytest

from syncbeat import SyncbeatClient
from syncbeat.v1 import core_pb2, directory_service_pb2
from syncbeat.v1 import sync_service_pb2 as pb
from syncbeat_devtools.demo.stage import Stage
from syncbeat_server.clock import SystemClock
from tests.support.databases import DatabaseUrls

pytestmark = pytest.mark.prove

SCOPES = [f"big-{number}" for number in range(6)]
VALUES, OCTETS = 60, 100 << 10
ROUNDS, ROUND_S, PAUSE_S = 5, 4.0, 0.005
MOST_TIMES = 3.0
NOISE_MS = 10.0  # what a machine with two cores, one of which the listers have, adds to a p99 by itself

Record = Callable[[str, dict[str, object]], None]


async def fill(urls: DatabaseUrls, backend: SyncbeatClient) -> None:
    """Scopes of big values, and a user with a device who has nothing to do with them."""
    conn = await asyncpg.connect(urls.admin_url)
    for scope in SCOPES:
        change = core_pb2.NewChange(scope=scope, key="first", merge_patch_json="1")
        await backend.sync.PublishChanges(pb.PublishChangesRequest(changes=[change]))
        await conn.execute(
            """INSERT INTO changes (app_id, scope, key, value, sequence, changed_at)
               SELECT 'default', $1, 'k' || n, to_jsonb(repeat(md5(n::text), $3 / 32)), n + 1, now()
               FROM generate_series(1, $2) n""",
            scope,
            VALUES,
            OCTETS,
        )
        await conn.execute("UPDATE scopes SET head = $2 WHERE scope = $1", scope, VALUES + 1)
    await conn.close()
    ann = directory_service_pb2.ScopeMember(user_id="ann", role=directory_service_pb2.ROLE_READER)
    await backend.directory.AddScopeMembers(directory_service_pb2.AddScopeMembersRequest(scope="anns", members=[ann]))
    await backend.directory.RegisterDevice(
        directory_service_pb2.RegisterDeviceRequest(
            user_id="ann", device_id="phone", platform=directory_service_pb2.PLATFORM_ANDROID
        )
    )


async def polls_ms(client: SyncbeatClient) -> float:
    """The 99th percentile of what the polls of a round take, of a device that asks again a moment after each answer."""
    clock, taken = SystemClock(), []
    until = clock.monotonic() + ROUND_S
    while clock.monotonic() < until:
        began = time.perf_counter()
        await client.sync.GetHint(pb.GetHintRequest(device_id="phone"), timeout=60)
        taken.append((time.perf_counter() - began) * 1_000)
        await clock.sleep(PAUSE_S)
    return statistics.quantiles(taken, n=100)[98]


@pytest.mark.timeout(300)
async def test_polls_beside_six_listings_of_big_values(
    stage: Stage, database_urls: DatabaseUrls, record: Record
) -> None:
    server = await stage.start_server()
    alone: list[float] = []
    beside: list[float] = []
    listed = 0
    async with (
        stage.client(stage.identity.service_token, server) as backend,
        stage.client(stage.user_token("ann"), server) as ann,
    ):
        await fill(database_urls, backend)
        await polls_ms(ann)
        for _ in range(ROUNDS):
            alone.append(await polls_ms(ann))
            listers = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tests.prove.listers"),
                *(server.address, stage.identity.service_token, str(ROUND_S + 1.0), *SCOPES),
                cwd=Path(__file__).parents[2],
                stdout=asyncio.subprocess.PIPE,
            )
            assert listers.stdout is not None
            assert await listers.stdout.readline() == b"listing\n"
            beside.append(await polls_ms(ann))
            listed += int((await listers.communicate())[0])
    figures: dict[str, object] = {
        "p99_ms_alone": round(statistics.median(alone), 2),
        "p99_ms_beside_listings": round(statistics.median(beside), 2),
        "listed_mib_per_s": round(listed / ROUNDS / (ROUND_S + 1.0) / (1 << 20), 1),
        "rounds": ROUNDS,
    }
    record("listings", figures)
    assert listed > ROUNDS << 20, "nobody listed"
    assert statistics.median(beside) <= MOST_TIMES * statistics.median(alone) + NOISE_MS
