"""Tests that reads are repeated after a lost connection, and that nothing goes on after a caller has gone."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest

from syncbeat.v1 import core_pb2, directory_service_pb2, push_service_pb2, sync_service_pb2
from tests.support.databases import DatabaseUrls
from tests.support.fake_clock import wait_until
from tests.support.rpc_server import Server

pytestmark = pytest.mark.rpc

WAITING = """SELECT pid FROM pg_stat_activity
             WHERE wait_event_type = 'Lock' AND datname = current_database() ORDER BY pid LIMIT 1"""
DEVICES = directory_service_pb2.ListDevicesRequest(user_id="ann")
PUBLISH = sync_service_pb2.PublishChangesRequest(
    changes=[core_pb2.NewChange(scope="couple", key="k", merge_patch_json="{}")]
)
SEND = push_service_pb2.SendNotificationRequest(
    user_ids=core_pb2.UserIds(ids=["ann"]), notification=core_pb2.Notification(title="t")
)


class Locked:
    """A table that a test has locked, and a look at who waits for it."""

    def __init__(self, holder: asyncpg.Connection, looker: asyncpg.Connection) -> None:
        self._holder, self._looker = holder, looker

    async def waiter(self) -> int:
        return int(await self._looker.fetchval(WAITING) or 0)

    async def nobody(self) -> bool:
        return not await self.waiter()

    async def cut(self, pid: int) -> None:
        await self._looker.execute("SELECT pg_terminate_backend($1)", pid)


@asynccontextmanager
async def locked(urls: DatabaseUrls, table: str) -> AsyncIterator[Locked]:
    holder, looker = await asyncpg.connect(urls.admin_url), await asyncpg.connect(urls.admin_url)
    try:
        async with holder.transaction():
            await holder.execute(f"LOCK TABLE {table}")
            yield Locked(holder, looker)
    finally:
        await holder.close()
        await looker.close()


async def count(urls: DatabaseUrls, table: str) -> int:
    conn = await asyncpg.connect(urls.admin_url)
    try:
        return int(await conn.fetchval(f"SELECT count(*) FROM {table}"))
    finally:
        await conn.close()


async def test_read_is_repeated_after_its_connection_was_cut(server: Server, database_urls: DatabaseUrls) -> None:
    await server.register("ann", "phone", "a-token")
    async with locked(database_urls, "devices") as table:
        calling = asyncio.ensure_future(server.backend(DEVICES))
        await table.cut(await wait_until(table.waiter))
    answer = await calling
    assert [device.device_id for device in answer.devices] == ["phone"]


async def test_publish_without_request_id_is_not_repeated(server: Server, database_urls: DatabaseUrls) -> None:
    await server.backend(PUBLISH)
    before = await count(database_urls, "changes")
    async with locked(database_urls, "changes") as table:
        calling = asyncio.ensure_future(server.backend.refusal(PUBLISH))
        await table.cut(await wait_until(table.waiter))
        assert (await calling).told == ("UNAVAILABLE", "DEPENDENCY_DOWN")
        assert await table.nobody()
    assert await count(database_urls, "changes") == before


@pytest.mark.parametrize(("request_", "table"), [(PUBLISH, "changes"), (SEND, "deliveries")], ids=["publish", "send"])
async def test_cancelled_call_ends_its_statement_and_writes_nothing(
    server: Server,
    database_urls: DatabaseUrls,
    request_: sync_service_pb2.PublishChangesRequest | push_service_pb2.SendNotificationRequest,
    table: str,
) -> None:
    await server.register("ann", "phone", "a-token")
    await server.backend(request_)
    before = await count(database_urls, table)
    async with locked(database_urls, table) as held:
        calling = asyncio.ensure_future(server.backend(request_))
        await wait_until(held.waiter)
        calling.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await calling
        await wait_until(held.nobody, timeout_s=3.0)  # its lock would be waited for 4 s, its statement run 10 s
    assert await count(database_urls, table) == before
