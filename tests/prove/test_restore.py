"""A restore from a real dump, of many scopes, again and again: what is published after it arrives."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from syncbeat_devtools.demo.stage import Stage
from tests.support.databases import DatabaseUrls
from tests.support.fake_clock import wait_until
from tests.support.restores import PATIENCE_S, Deployment, dump, new_epoch, restore

pytestmark = pytest.mark.prove

SCOPES, ROUNDS, OLD, LOST, NEW = 30, 3, 10, 10, 15


@pytest.mark.timeout(900)
async def test_restores_with_new_epoch_lose_nothing_that_is_published_after_them(
    stage: Stage, database_urls: DatabaseUrls, tmp_path: Path, record: Callable[[str, dict[str, object]], None]
) -> None:
    settled_s, wrong, keys = [], 0, 0
    async with Deployment(stage, SCOPES) as deployment:
        for number in range(ROUNDS):
            await deployment.publish(f"old {number} ", OLD, wakes=True)
            await wait_until(deployment.all_right, PATIENCE_S)
            await dump(database_urls, tmp_path / "backup")
            await deployment.publish(f"lost {number} ", LOST, wakes=True)
            await wait_until(deployment.all_right, PATIENCE_S)
            await restore(stage, database_urls, tmp_path / "backup")
            done = await asyncio.to_thread(new_epoch, stage, "--confirm", database_urls.name)
            assert done.returncode == 0, done.stderr
            began = time.monotonic()
            await deployment.publish(f"new {number} ", NEW, wakes=True)
            await wait_until(deployment.all_right, PATIENCE_S)
            settled_s.append(round(time.monotonic() - began, 1))
            wrong += len(await deployment.wrong())
            for scope in deployment.scopes:
                _, values = await deployment.truth(scope)
                keys += len(values)
                assert not any(key.startswith("lost") for key in values)
                assert sum(key.startswith(f"new {number} ") for key in values) == NEW
        fewest_drops = min(device.drops for device in deployment.devices)
    figures = {"rounds": ROUNDS, "scopes": SCOPES, "devices": 2 * SCOPES, "keys_compared": 2 * keys}
    record(
        "restore", {**figures, "devices_wrong": wrong, "settled_s": settled_s, "fewest_drops_of_a_device": fewest_drops}
    )
    assert wrong == 0
    assert fewest_drops >= ROUNDS
