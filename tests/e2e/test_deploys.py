"""Ends servers by SIGTERM: the frames of their last seconds, and the calls of bare clients."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from syncbeat.v1 import sync_service_pb2
from syncbeat_devtools.demo.stage import Stage, running_stage
from syncbeat_devtools.embedded import EmbeddedStores
from tests.support.databases import DatabaseUrls
from tests.support.fake_clock import wait_until
from tests.support.http2_frames import FrameConnection, frame_connection
from tests.support.ports import free_port
from tests.support.rolling_deploys import roll

pytestmark = [pytest.mark.process, pytest.mark.slow]

HINT = "/syncbeat.v1.SyncService/GetHint"
REQUEST = sync_service_pb2.GetHintRequest(user_id="ann", device_id="phone").SerializeToString()


@pytest.fixture
async def stage(stores: EmbeddedStores, database_urls: DatabaseUrls, tmp_path: Path) -> AsyncIterator[Stage]:
    async with running_stage(stores, tmp_path, database_url=database_urls.app_url) as staging:
        yield staging


async def seen(connection: FrameConnection, start: str) -> None:
    await wait_until(lambda: any(frame.startswith(start) for frame in connection.seen), what=start)


async def test_sigterm_sends_goaway_twice_and_finishes_the_call_in_flight(stage: Stage) -> None:
    server = await stage.start_server()
    metadata = (("authorization", f"Bearer {stage.identity.service_token}"),)
    async with frame_connection(server.address) as connection:
        connection.begin(1, HINT, metadata)
        connection.finish(1, REQUEST)
        await seen(connection, "1 grpc-status")
        connection.seen.clear()
        connection.begin(3, HINT, metadata)  # its request comes later: it is in flight
        connection.begin(5, HINT, metadata)
        connection.finish(5, REQUEST)
        await seen(connection, "5 grpc-status")  # what came before it has arrived
        ending = asyncio.create_task(server.stop())
        await seen(connection, "GOAWAY")
        connection.begin(7, HINT, metadata)  # before it can know: the first GOAWAY allows it
        connection.finish(7, REQUEST)
        await seen(connection, "7 ")
        await seen(connection, "PING")
        connection.answer_pings()
        await seen(connection, "GOAWAY last=7")
        connection.finish(3, REQUEST)
        await seen(connection, "3 grpc-status")
        await seen(connection, "closed")
        frames = [frame for frame in connection.seen if not frame.startswith("5 ")]
        assert await ending == 0
    refused = "7 grpc-status=1"  # CANCELLED by grpc-core: no handler saw it
    assert frames[0] == "GOAWAY last=max error=0", frames
    assert frames.index("PING") < frames.index("GOAWAY last=7 error=0") > frames.index(refused), frames
    assert frames.index("GOAWAY last=7 error=0") < frames.index("3 grpc-status=5") < frames.index("closed"), frames


async def test_deploys_fail_no_call_that_was_carried_out(stage: Stage, database_urls: DatabaseUrls) -> None:
    deploys = await roll(stage, free_port(), database_urls.admin_url, 2)
    told = deploys.statuses()
    assert deploys.held_through == 2
    assert len(deploys.told.accepted) > 50, told
    assert not deploys.carried_out, told
    assert not deploys.lost, told
