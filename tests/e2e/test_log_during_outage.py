"""Tests what a server writes while its database is away and everybody calls: each cause once, and how often it came."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import grpc
import pytest

from syncbeat import SyncbeatClient
from syncbeat.v1 import directory_service_pb2
from syncbeat_devtools.demo.processes import Identity, start_process
from syncbeat_devtools.embedded import EmbeddedStores
from tests.support.databases import DatabaseUrls
from tests.support.fake_clock import wait_until

pytestmark = pytest.mark.process

CALLS = 600
MOST_LINES = 60
"""Of the few dozen places that look into the database; each may be told of once, counted, and told to be over."""


def parsed(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


async def test_log_rate_limit_during_a_database_outage_under_load(
    stores: EmbeddedStores, database_urls: DatabaseUrls, redis_url: str, tmp_path: Path
) -> None:
    identity = Identity.new()
    settings = {
        **identity.settings(),
        "SYNCBEAT_DATABASE_URL": database_urls.app_url,
        "SYNCBEAT_DATABASE_SESSION_URL": database_urls.app_url,
        "SYNCBEAT_REDIS_URL": redis_url,
        "SYNCBEAT_LISTEN": "127.0.0.1:0",
        "SYNCBEAT_LOG_FORMAT": "json",
        "SYNCBEAT_DELIVERY_POLL_S": "0.05",
    }
    process = await start_process(["serve"], settings, tmp_path / "log")
    refused = 0
    async with SyncbeatClient(process.address, token=identity.service_token, tls=False) as backend:
        request = directory_service_pb2.ListDevicesRequest(user_id="ann")
        await backend.directory.ListDevices(request)

        async def call() -> None:
            nonlocal refused
            try:
                await backend.directory.ListDevices(request, timeout=30)
            except grpc.aio.AioRpcError as error:
                refused += error.code() is grpc.StatusCode.UNAVAILABLE

        stores.kill_postgres()
        try:
            while refused < CALLS:
                await asyncio.gather(*(call() for _ in range(50)))
        finally:
            stores.start_postgres()

        async def answers() -> bool:
            try:
                await backend.directory.ListDevices(request)
            except grpc.aio.AioRpcError:
                return False
            return True

        await wait_until(answers)
    assert await process.stop() == 0
    text = process.log_text()
    lines = parsed(text)
    assert len(text.splitlines()) == len(lines) <= MOST_LINES, text
    told = [line for line in lines if line["event"] == "dependency down"]
    assert 1 <= sum("exception" in line for line in told) <= 8, told
    # Nothing is lost: what was written and what was counted are the calls that were refused, repeats of the client
    # and of those who waited for it to come back among them.
    assert sum(line.get("repeated", 1) for line in told) >= refused
