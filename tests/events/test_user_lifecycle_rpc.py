"""Users that are shut out or erased: in every table, whatever runs meanwhile."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest
from google.protobuf.message import Message

from syncbeat.v1 import core_pb2, directory_service_pb2, push_service_pb2
from syncbeat_server.push.model import DeliveryState, DeliveryUpdate, Reason
from syncbeat_server.push.store import queue
from syncbeat_server.ratelimit.store import quota_usage, user_tiers
from syncbeat_server.storage.postgres.database import Database
from tests.support.fake_clock import wait_until
from tests.support.isolation import PHONE, people
from tests.support.rpc_server import METHODS, Server
from tests.support.store_calls import BOBS_QUOTA

pytestmark = pytest.mark.rpc

DELETE = directory_service_pb2.DeleteUserRequest(user_id="bob")
DISABLE = directory_service_pb2.DisableUserRequest(user_id="bob")
ENABLE = directory_service_pb2.EnableUserRequest(user_id="bob")
# What bob published names him as its notification's caller; that and the grave stay, and for two minutes that he went.
LEFT = {"users", "notifications", "touches", "audit_entries"}  # the last until they are too old (ADR 181)
LEASE = "0197c1f0-6f6c-7d3e-9d6b-0f3f3f6f9a10"


@pytest.fixture
async def peopled(server: Server) -> Server:
    """Bob has a bit of everything, and a message waits for him; alice has things of her own."""
    await people(server)
    await server.backend(send("bob", "alice"))
    return server


def send(*user_ids: str) -> push_service_pb2.SendNotificationRequest:
    return push_service_pb2.SendNotificationRequest(
        user_ids=core_pb2.UserIds(ids=user_ids), notification=core_pb2.Notification(title="t")
    )


async def naming(server: Server, user_id: str) -> dict[str, int]:
    """Count the rows of each table in which a user stands in any column."""
    conn = await asyncpg.connect(server.urls.admin_url)
    try:
        columns = await conn.fetch(
            """SELECT table_name, column_name FROM information_schema.columns
               WHERE table_schema = 'public' AND data_type = 'text'"""
        )
        found: dict[str, int] = {}
        for table, column in columns:
            count = await conn.fetchval(f"SELECT count(*) FROM {table} WHERE {column} IN ($1, 'user:' || $1)", user_id)
            if count:
                found[table] = found.get(table, 0) + count
        return found
    finally:
        await conn.close()


async def test_erase_user_leaves_no_rows_but_the_erasure(peopled: Server, database: Database) -> None:
    async with database.connection() as conn:  # what RPCs of a deployment with tiers write
        await user_tiers.set_tier(conn, "default", "bob", "pro")
        await quota_usage.add_usage(conn, {BOBS_QUOTA: 1, BOBS_QUOTA._replace(name="user:alice"): 1})
    before, alices = await naming(peopled, "bob"), await naming(peopled, "alice")
    assert before.keys() >= {"devices", "device_cursors", "scope_members", "sessions", "deliveries", "request_records"}
    assert before.keys() >= {"user_tiers", "quota_usage"}
    answer = await peopled.backend(DELETE)
    assert (answer.device_count, answer.membership_count, answer.session_count) == (1, 2, 1)
    assert answer.cancelled_count > 0
    assert (await naming(peopled, "bob")).keys() <= LEFT
    assert (await naming(peopled, "alice")) == alices
    assert (await peopled.rows())["changes"]
    again = await peopled.backend(DELETE)
    counts = (again.device_count, again.membership_count, again.session_count, again.cancelled_count)
    assert counts == (0, 0, 0, 0)


async def test_erase_user_in_flight_disturbs_no_other_delivery(peopled: Server, database: Database) -> None:
    async with database.transaction() as conn:
        claimed = await queue.read_claimed(conn, LEASE, (await queue.claim(conn, LEASE, 30.0, {"default": 100})).keys)
    assert {delivery.user_id for delivery in claimed} == {"alice", "bob"}
    await peopled.backend(DELETE)
    async with database.transaction() as conn:
        done = await queue.finish(conn, [DeliveryUpdate(one, DeliveryState.SENT, Reason.NONE) for one in claimed])
    assert done == {one.delivery_id for one in claimed if one.user_id == "alice"}


async def deliveries(database: Database, user_id: str) -> list[tuple[str, str]]:
    async with database.connection() as conn:
        rows = await conn.fetch("SELECT state, reason FROM deliveries WHERE user_id = $1 ORDER BY delivery_id", user_id)
    return [(row["state"], row["reason"]) for row in rows]


async def test_disabled_user_gets_no_push(peopled: Server, database: Database) -> None:
    waiting = await deliveries(database, "bob")
    await peopled.backend(DISABLE)
    gone = ("CANCELLED", "USER_DISABLED")
    after = await deliveries(database, "bob")
    assert len(after) == len(waiting)
    assert gone in after
    assert not {"PENDING", "HELD"} & {state for state, _ in after}
    assert (await peopled.backend(send("bob", "alice"))).delivery_count == 1
    assert await deliveries(database, "bob") == after
    await peopled.backend(ENABLE)
    assert (await peopled.backend(send("bob", "alice"))).delivery_count == 2


async def test_device_deleted_during_a_send_makes_it_retryable(peopled: Server) -> None:
    request = send("bob")
    request.dedupe_key = "one"
    conn = await asyncpg.connect(peopled.urls.admin_url)
    try:
        async with conn.transaction():
            await conn.execute("DELETE FROM devices WHERE user_id = 'bob'")
            sending = asyncio.ensure_future(
                peopled.backend.outcome(METHODS["SendNotificationRequest"], encoded(request))
            )

            async def waits() -> bool:
                return bool(await conn.fetchval("SELECT EXISTS (SELECT 1 FROM pg_locks WHERE NOT granted)"))

            await wait_until(waits)
    finally:
        await conn.close()
    refusal = await sending
    assert refusal is None or refusal.told == ("RESOURCE_EXHAUSTED", "OVERLOADED")
    assert (await peopled.backend(request)).delivery_count == 0


def encoded(request: Message) -> bytes:
    return request.SerializeToString()


async def test_erase_user_races_with_everything_else(peopled: Server) -> None:
    async def meanwhile(number: int) -> None:
        await peopled.register("bob", PHONE.device_id, f"token-{number}")
        await peopled.backend(send("bob"))
        await peopled.add("bobs", "bob")

    for number in range(30):
        results = await asyncio.gather(meanwhile(number), peopled.backend(DELETE), return_exceptions=True)
        assert not [result for result in results if isinstance(result, BaseException)]
    await peopled.backend(DELETE)
    assert (await naming(peopled, "bob")).keys() <= LEFT
