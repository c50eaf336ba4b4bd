"""A consumer of a whole app stalls, is cut off and killed, over servers that are killed and whose clocks differ."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest

from syncbeat import SyncbeatClient
from syncbeat_devtools.demo.stage import Stage
from tests.e2e.feed_story import Cable, Consumer, Hosts, Writers, hold, level
from tests.support.databases import DatabaseUrls

pytestmark = pytest.mark.prove

ROUNDS = 3
SCOPES = 2_000  # that are written all the time
STALL_S = 60.0
STALL_SCOPES = 13_000  # that change meanwhile and were never heard of
AHEAD_S = (15.0, -15.0)


@pytest.mark.timeout(900)
async def test_firehose_misses_nothing_whatever_happens(
    stage: Stage,
    database_urls: DatabaseUrls,
    two_ports: list[int],
    record: Callable[[str, dict[str, object]], None],
) -> None:
    hosts, cable, dice = Hosts(stage, two_ports, AHEAD_S), Cable(two_ports), random.Random(5)
    await hosts.start()
    await cable.open()
    token = stage.identity.service_token
    apart_s = await hosts.clocks_apart_s(token)
    async with (
        stage.client(token) as backend,
        SyncbeatClient(f"127.0.0.1:{cable.port}", token=token, tls=False) as client,
    ):
        consumer, writers = Consumer(client), Writers(backend, SCOPES)
        consumer.start()
        await asyncio.wait_for(consumer.opened.wait(), 60.0)
        load = [asyncio.ensure_future(writers.run(number)) for number in range(4)]
        for number in range(ROUNDS):
            over = asyncio.Event()
            held = [asyncio.ensure_future(hold(database_urls, over, numbered=numbered)) for numbered in (True, False)]
            consumer.reads.clear()
            await writers.to_many(f"stall-{number}", STALL_SCOPES)
            await asyncio.wait(load, timeout=STALL_S)
            consumer.reads.set()
            for _ in range(4):
                cable.cut()
                await asyncio.wait(load, timeout=dice.uniform(0.2, 2.0))
                await hosts.kill(dice.randrange(2))
            await consumer.stop()
            await writers.to_many(f"away-{number}", STALL_SCOPES // 2)
            await asyncio.wait(load, timeout=5.0)
            consumer.start()
            over.set()
            await asyncio.gather(*held)
        writers.over.set()
        await asyncio.gather(*load)
        gaps = await level(consumer, database_urls, writers)
        await consumer.stop()
    await hosts.stop()
    await cable.close()
    record(
        "firehose",
        {
            "command": "make prove ARGS='-k firehose_misses_nothing'",
            "stalls": ROUNDS,
            "stall_s": STALL_S,
            "scopes_changed_in_each_stall": STALL_SCOPES,
            "connections_cut": cable.cuts,
            "servers_killed": hosts.kills,
            "consumers_killed": ROUNDS,
            "foreign_snapshots_held": ROUNDS * 2,
            "clocks_apart_s": round(apart_s, 1),
            "changes_published": writers.published,
            "rows_in_the_end": len(consumer.rows),
            "changes_told": consumer.events,
            "longest_checkpoint_octets": consumer.longest_checkpoint,
            "missed": len(gaps),
            "out_of_order": len(consumer.unordered),
            "resets": consumer.resets,
        },
    )
    assert gaps == []
    assert consumer.unordered == []
    assert consumer.resets == 0
    assert apart_s > 25.0
