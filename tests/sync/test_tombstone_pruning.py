"""A worker removes old tombstones by itself."""

from __future__ import annotations

from dataclasses import replace

import pytest

from syncbeat.v1 import core_pb2, sync_service_pb2
from syncbeat_server.ops.settings.server import Role
from syncbeat_server.storage.postgres.database import Database
from tests.support.databases import DatabaseUrls
from tests.support.fake_clock import wait_until
from tests.support.process_rules import PATIENT
from tests.support.rpc_server import running_server

pytestmark = pytest.mark.rpc


async def test_tombstone_pruning_by_the_worker_follows_the_setting(
    database_urls: DatabaseUrls, redis_url: str, database: Database
) -> None:
    often = replace(PATIENT, sync=replace(PATIENT.sync, prune_every_s=0.02))
    async with running_server(database_urls, redis_url, Role.ALL, often, KEEP_TOMBSTONES_DAYS="5") as server:
        for key in ("young", "old"):
            deletion = core_pb2.NewChange(scope="s", key=key, deleted=True)
            await server.backend(sync_service_pb2.PublishChangesRequest(changes=[deletion]))
        async with database.connection() as conn:
            for key, days in (("young", 4.0), ("old", 7.0)):
                await conn.execute(
                    "UPDATE changes SET changed_at = changed_at - make_interval(secs => $2 * 86400) WHERE key = $1",
                    key,
                    days,
                )

        async def kept() -> list[str]:
            async with database.connection() as conn:
                return [row["key"] for row in await conn.fetch("SELECT key FROM changes")]

        async def removed() -> bool:
            return await kept() == ["young"]

        await wait_until(removed)
