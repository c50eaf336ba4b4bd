"""A consumer of a whole app misses nothing and is told little, whatever becomes of it, the servers and the database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from syncbeat import SyncbeatClient
from syncbeat.v1 import core_pb2
from syncbeat.v1 import sync_service_pb2 as pb
from syncbeat_devtools.demo.devices import eventually
from syncbeat_devtools.demo.stage import Stage, running_stage
from syncbeat_devtools.embedded import EmbeddedStores
from tests.e2e.feed_story import Cable, Consumer, Hosts, Writers, hold, level
from tests.support.databases import DatabaseUrls, run_sql
from tests.support.ports import free_port

pytestmark = [pytest.mark.process, pytest.mark.slow]


@pytest.fixture
async def stage(stores: EmbeddedStores, database_urls: DatabaseUrls, tmp_path: Path) -> AsyncIterator[Stage]:
    async with running_stage(stores, tmp_path, database_url=database_urls.app_url) as staging:
        yield staging


async def test_firehose_misses_nothing_by_stalls_cuts_kills_held_snapshots_and_clocks_apart(
    stage: Stage, database_urls: DatabaseUrls
) -> None:
    """The short form of what `tests/prove` does for minutes."""
    ports = [free_port(), free_port()]
    hosts, cable = Hosts(stage, ports, (15.0, -15.0)), Cable(ports)
    await hosts.start()
    await cable.open()
    assert await hosts.clocks_apart_s(stage.identity.service_token) > 25.0
    token = stage.identity.service_token
    async with (
        stage.client(token) as backend,
        SyncbeatClient(f"127.0.0.1:{cable.port}", token=token, tls=False) as client,
    ):
        consumer, writers, over = Consumer(client), Writers(backend, 300), asyncio.Event()
        consumer.start()
        await asyncio.wait_for(consumer.opened.wait(), 60.0)
        held = [asyncio.ensure_future(hold(database_urls, over, numbered=numbered)) for numbered in (True, False)]
        load = [asyncio.ensure_future(writers.run(number)) for number in range(3)]
        for index in (0, 1):
            consumer.reads.clear()
            await writers.to_many(f"stall-{index}", 6_000)
            consumer.reads.set()
            cable.cut()
            await writers.to_many(f"cut-{index}", 500)
            await consumer.stop()
            await writers.to_many(f"away-{index}", 500)
            await hosts.kill(index)
            consumer.start()
        writers.over.set()
        await asyncio.gather(*load)
        assert await level(consumer, database_urls, writers) == []
        over.set()
        await asyncio.gather(*held)
        await consumer.stop()
    await hosts.stop()
    await cable.close()
    assert consumer.unordered == []
    assert consumer.resets == 0
    assert consumer.longest_checkpoint < 4_000
    assert hosts.kills == 2
    assert cable.cuts >= 2


async def test_firehose_of_20000_scopes_costs_only_what_changed(stage: Stage, database_urls: DatabaseUrls) -> None:
    await run_sql(
        database_urls.admin_url,
        "INSERT INTO scopes (app_id, scope, head, created_at) "
        "SELECT 'default', 's' || n, 1, now() FROM generate_series(1, 20000) n",
        "INSERT INTO changes (app_id, scope, key, value, sequence, changed_at) "
        "SELECT 'default', 's' || n, 'k', '1', 1, now() FROM generate_series(1, 20000) n",
    )
    serving, writing = await asyncio.gather(stage.start_server(), stage.start_server())
    token = stage.identity.service_token
    async with stage.client(token, serving) as client, stage.client(token, writing) as backend:
        consumer = Consumer(client)
        consumer.start()
        await asyncio.wait_for(consumer.opened.wait(), 60.0)
        process = psutil.Process(serving.pid)
        before, octets = process.cpu_times(), consumer.octets
        for number in range(100):
            change = core_pb2.NewChange(scope=f"s{number * 200 + 1}", key="k", merge_patch_json=f'{{"n":{number}}}')
            await backend.sync.PublishChanges(pb.PublishChangesRequest(changes=[change]))

        async def all_came() -> bool:
            return consumer.events == 100

        assert await eventually(all_came)
        after = process.cpu_times()
        await consumer.stop()
    assert consumer.octets - octets <= 1 << 20
    # 0.2 s is what it is to cost at most; a core that others work on too counts more for the same.
    assert after.user + after.system - before.user - before.system <= 1.0
