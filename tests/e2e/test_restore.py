"""The restore of docs/restore.md, from a real dump, while servers, streams, polls and pushes go on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from syncbeat_devtools.demo.stage import Stage, running_stage
from syncbeat_devtools.embedded import EmbeddedStores
from tests.support.databases import DatabaseUrls
from tests.support.fake_clock import wait_until
from tests.support.restores import PATIENCE_S, Deployment, dump, new_epoch, restore

pytestmark = [pytest.mark.process, pytest.mark.slow]


@pytest.fixture
async def stage(stores: EmbeddedStores, database_urls: DatabaseUrls, tmp_path: Path) -> AsyncIterator[Stage]:
    async with running_stage(stores, tmp_path, database_url=database_urls.app_url) as staging:
        yield staging


@pytest.mark.timeout(300)
async def test_restore_with_new_epoch_loses_nothing_that_was_published_after_it(
    stage: Stage, database_urls: DatabaseUrls, tmp_path: Path
) -> None:
    async with Deployment(stage, scopes=2) as deployment:
        await deployment.publish("old ", 9)
        await deployment.publish("waking ", 2, wakes=True)  # of two in a window the second waits for its end
        await wait_until(deployment.all_right, PATIENCE_S)
        await dump(database_urls, tmp_path / "backup")
        first = await deployment.notify("a request")
        assert (await deployment.notify("a request")).replayed
        await deployment.publish("lost ", 10)
        await wait_until(deployment.all_right, PATIENCE_S)
        before, _ = await deployment.truth("scope 0")

        await restore(stage, database_urls, tmp_path / "backup")
        assert "nothing was done" in new_epoch(stage).stderr
        assert "nothing was done" in new_epoch(stage, "--confirm", "another").stderr
        done = new_epoch(stage, "--confirm", database_urls.name)
        assert done.returncode == 0, done.stderr
        assert "2 scopes began new epochs" in done.stdout
        assert "1 kept answers" in done.stdout

        async def renewed() -> bool:
            return (await deployment.truth("scope 0"))[0] != before

        await wait_until(renewed)
        await deployment.publish("new ", 15)  # past where the feeds had been before: 11, and lost 10
        await wait_until(deployment.all_right, PATIENCE_S)
        epoch, values = await deployment.truth("scope 0")
        assert len(values) == 9 + 2 + 15
        assert all(device.drops for device in deployment.devices)
        again = await deployment.notify("a request")
        assert (again.replayed, again.notification_id == first.notification_id) == (False, False)

        async def woken() -> list[int]:
            return await deployment.woken_for(0, epoch)

        assert min(await wait_until(woken, PATIENCE_S)) >= 11, "what waited in the backup wakes for the new epoch"


@pytest.mark.timeout(300)
async def test_restore_without_new_epoch_is_noticed_where_cursors_are_ahead(
    stage: Stage, database_urls: DatabaseUrls, tmp_path: Path
) -> None:
    async with Deployment(stage, scopes=1) as deployment:
        await deployment.publish("old ", 10)
        await dump(database_urls, tmp_path / "backup")
        await deployment.publish("lost ", 10)
        await wait_until(deployment.all_right, PATIENCE_S)
        await restore(stage, database_urls, tmp_path / "backup")
        await wait_until(deployment.all_right, PATIENCE_S)
        assert [len(device.kept["scope 0"]) for device in deployment.devices] == [10, 10]
        assert all(device.drops for device in deployment.devices)


def test_new_epoch_refuses_what_it_cannot_do_and_says_why(stage: Stage, database_urls: DatabaseUrls) -> None:
    unknown = new_epoch(stage, "--app", "shopp", "--confirm", database_urls.name)
    assert (unknown.returncode, "--app: 'shopp' has no scopes" in unknown.stderr) == (1, True)
    stage.settings["SYNCBEAT_REDIS_URL"] = "redis://127.0.0.1:1"
    deaf = new_epoch(stage, "--confirm", database_urls.name)
    assert (deaf.returncode, "--skip-redis" in deaf.stderr) == (1, True)
    done = new_epoch(stage, "--confirm", database_urls.name, "--skip-redis")
    assert (done.returncode, "flush it" in done.stdout) == (0, True)
    stage.settings["SYNCBEAT_DATABASE_URL"] = database_urls.owner_url
    owner = new_epoch(stage, "--confirm", database_urls.name)
    assert (owner.returncode, "row-level security" in owner.stderr) == (1, True)
    assert "Traceback" not in unknown.stderr + deaf.stderr + owner.stderr
