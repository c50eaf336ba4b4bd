"""A hundred deliveries of one event at once, at two servers of their own: one effect, and one result for all."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from syncbeat.v1 import directory_service_pb2
from syncbeat.v1 import event_service_pb2 as pb
from syncbeat_devtools.demo.stage import Stage, running_stage
from syncbeat_devtools.embedded import EmbeddedStores
from tests.support.databases import DatabaseUrls
from tests.support.event_requests import SOURCE, TIERS, done_once, effects_of, event, everything, told

pytestmark = [pytest.mark.process, pytest.mark.slow]

TWINS, EVENTS = 100, 5


@pytest.fixture
async def stage(stores: EmbeddedStores, database_urls: DatabaseUrls, tmp_path: Path) -> AsyncIterator[Stage]:
    async with running_stage(stores, tmp_path, database_url=database_urls.app_url) as staging:
        apps = tmp_path / "apps.toml"
        apps.write_text(TIERS)
        staging.settings["SYNCBEAT_APPS_FILE"] = str(apps)
        yield staging


async def test_event_twins_at_two_processes_have_one_effect(stage: Stage, database_urls: DatabaseUrls) -> None:
    first, second = await asyncio.gather(stage.start_server(), stage.start_server())
    token = stage.identity.service_token
    async with stage.client(token, first) as one, stage.client(token, second) as other:
        for number in range(EVENTS):
            name = f"user-{number}"
            device = directory_service_pb2.RegisterDeviceRequest(
                user_id=name,
                device_id="phone",
                platform=directory_service_pb2.PLATFORM_ANDROID,
                registration_token=f"token-{number}",
            )
            await one.directory.RegisterDevice(device)
            request = event(name, everything(name), subject=name)
            calls = [(one, other)[twin % 2].events.IngestEvent(request, timeout=30) for twin in range(TWINS)]
            answers = await asyncio.gather(*calls)
            assert Counter(map(told, answers)) == {("ACCEPTED", "ACCEPTED"): 1, ("DUPLICATE", "ACCEPTED"): TWINS - 1}
            results = {
                (
                    answer.receipt.first_seen_time.ToNanoseconds(),
                    *((head.scope, head.epoch, head.sequence) for head in answer.heads),
                    answer.trigger_notification_id,
                    answer.notification_id,
                )
                for answer in answers
            }
            assert len(results) == 1, "each is told the first's result"
            assert await effects_of(database_urls.admin_url, name) == done_once(name)
            found = await other.events.GetEvent(pb.GetEventRequest(source=SOURCE, event_id=name))
            assert (found.event.attempts, found.event.duplicate_count) == (1, TWINS - 1)
