"""Everything that can happen to two servers and two workers, for a long time; then the history is checked."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable

import pytest
import redis.asyncio

from syncbeat_devtools.demo.devices import eventually
from syncbeat_devtools.demo.stage import Stage
from syncbeat_devtools.embedded import EmbeddedStores
from tests.e2e.witness import history_of, last_to_claim, watch_database
from tests.prove.load import Promises, register, send_for_ever, settled
from tests.prove.test_kill import Victims
from tests.support.databases import DatabaseUrls
from tests.support.delivery_history import unended, violations

pytestmark = pytest.mark.prove

HARMS = ("kill", "kill", "kill", "pause", "postgres", "flush redis", "redis away")
FAULTS = {"accepted-503": 0.05, "accepted-reset": 0.03, "503": 0.03, "reset": 0.03, "quota": 0.01}


async def _pause(stage: Stage, urls: DatabaseUrls) -> None:
    """Stop who holds leases for longer than they last."""
    holder = 0

    async def held() -> bool:
        nonlocal holder
        holder = await last_to_claim(urls)
        return holder > 0

    if not await eventually(held, 5.0):
        return
    os.kill(holder, signal.SIGSTOP)
    try:
        before = (await stage.fake_fcm.stats())["accepted"]

        async def went_on() -> bool:
            return bool((await stage.fake_fcm.stats())["accepted"] > before + 10_000)

        await eventually(went_on, 3.0)  # twice a lease, unless very much is sent meanwhile
    finally:
        os.kill(holder, signal.SIGCONT)


async def _harm(what: str, stage: Stage, stores: EmbeddedStores, urls: DatabaseUrls, victims: Victims) -> None:
    if what == "kill":
        await victims.kill_one(random.Random())
    elif what == "pause":
        await _pause(stage, urls)
    elif what == "postgres":
        stores.kill_postgres()
        stores.start_postgres()
    elif what == "flush redis":
        async with redis.asyncio.Redis.from_url(stores.redis_url) as client:
            await client.flushall()
    else:
        before = (await stage.fake_fcm.stats())["accepted"]
        stores.kill_redis()

        async def went_on() -> bool:
            return bool((await stage.fake_fcm.stats())["accepted"] > before + 300)

        await eventually(went_on, 3.0)
        stores.start_redis()


@pytest.mark.timeout(900)
async def test_history_is_good_under_random_failures(
    stage: Stage,
    stores: EmbeddedStores,
    database_urls: DatabaseUrls,
    two_ports: list[int],
    soak_s: float,
    record: Callable[[str, dict[str, object]], None],
) -> None:
    await watch_database(database_urls)
    stage.settings["SYNCBEAT_DELIVERY_BREAKER_S"] = "1"
    victims = Victims(stage, two_ports)
    await victims.start()
    for seed, (kind, share) in enumerate(FAULTS.items()):
        await stage.fake_fcm.script("*", kind, times=None, share=share, seed=seed)
    promises, over, dice, done = Promises(), asyncio.Event(), random.Random(11), Counter[str]()
    async with stage.client(stage.identity.service_token) as backend:
        await register(backend)
        load = [asyncio.ensure_future(send_for_ever(backend, n, promises, over)) for n in range(8)]
        ends = time.monotonic() + soak_s
        while time.monotonic() < ends:
            what = dice.choice(HARMS)
            done[what] += 1
            await _harm(what, stage, stores, database_urls, victims)
        over.set()
        await asyncio.gather(*load)
        counts = await settled(backend)
        history = await history_of(stage, database_urls, dict.fromkeys(promises.notifications.values(), 1))
    await victims.stop()
    found = violations(history)
    stats = await stage.fake_fcm.stats()
    record(
        "history",
        {
            "command": "make prove ARGS='-k history_is_good'",
            "seconds": soak_s,
            "harms": dict(done),
            "faults": stats["faults"],
            "notifications_accepted": len(promises.notifications),
            "deliveries": counts,
            "accepted_minus_terminal_minus_queued": len(promises.notifications) - len(history.final),
            "changes_of_state_checked": len(history.changes),
            "completions_by_a_stale_lease": sum(line.startswith("stale") for line in found),
            "shown_more_than_once": sum(line.startswith("shown twice") for line in found),
            "violations": len(found),
            "sent_twice_replaced_in_place": stats["replaced"],
        },
    )
    assert found == []
    assert unended(history) == 0
    assert counts == {"SENT": len(promises.notifications)}
