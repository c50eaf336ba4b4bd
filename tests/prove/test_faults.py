"""FCM fails in every way it can, at random: each accepted notification is shown once or accounted for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from syncbeat_devtools.demo.stage import Stage
from tests.prove.load import Promises, register, send_for_ever, settled

pytestmark = pytest.mark.prove

SHARES = {"503": 0.08, "500": 0.03, "accepted-503": 0.04, "accepted-reset": 0.03, "reset": 0.04, "not-json": 0.02}


@pytest.mark.timeout(900)
async def test_fcm_faults_at_random_show_each_notification_once(
    stage: Stage, soak_s: float, record: Callable[[str, dict[str, object]], None]
) -> None:
    # A fifth of all sends fail here: now and then five in a row.
    stage.settings |= {"SYNCBEAT_DELIVERY_RETRY_S": "0.2", "SYNCBEAT_DELIVERY_BREAKER_S": "1"}
    await stage.start_server()
    await asyncio.gather(stage.start_worker(), stage.start_worker())
    for seed, (kind, share) in enumerate(SHARES.items()):
        await stage.fake_fcm.script("*", kind, times=None, share=share, seed=seed)
    promises, over = Promises(), asyncio.Event()
    async with stage.client(stage.identity.service_token) as backend:
        await register(backend)
        load = [asyncio.ensure_future(send_for_ever(backend, n, promises, over)) for n in range(8)]
        await asyncio.wait(load, timeout=soak_s)
        over.set()
        await asyncio.gather(*load)
        counts = await settled(backend)
    stats = await stage.fake_fcm.stats()
    record(
        "faults",
        {
            "command": "make prove ARGS='-k fcm_faults_at_random'",
            "seconds": soak_s,
            "shares": SHARES,
            "faults": stats["faults"],
            "notifications_accepted": len(promises.notifications),
            "deliveries": counts,
            "shown": stats["shown"],
            "sent_twice_replaced_in_place": stats["replaced"],
        },
    )
    assert sum(stats["faults"].values()) > 0
    assert counts == {"SENT": len(promises.notifications)}
    assert stats["shown"] == len(promises.notifications)
