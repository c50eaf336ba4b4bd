"""Clients with gRPC's default limits get everything, however large the values of a feed are."""

from __future__ import annotations

import asyncpg
import pytest

from syncbeat import ClientRule, SmartSync
from syncbeat.client_options import CHANNEL_OPTIONS
from syncbeat.v1 import core_pb2
from syncbeat.v1 import sync_service_pb2 as pb
from tests.client.test_smart_sync_real_server import Store
from tests.support.client_servers import client_of, user_token
from tests.support.fake_clock import wait_until
from tests.support.phones import DeviceClock
from tests.support.rpc_server import Server

pytestmark = pytest.mark.rpc

KIB = 1 << 10


async def fill(server: Server, scope: str, count: int, octets: int) -> None:
    """Give a scope so many keys with values of a size."""
    await server.publish(scope, "first")
    conn = await asyncpg.connect(server.urls.admin_url)
    try:
        await conn.execute(
            """INSERT INTO changes (app_id, scope, key, value, sequence, changed_at)
               SELECT 'default', $1, 'k' || n, to_jsonb(repeat('x', $3 - 2)), n + 1, now()
               FROM generate_series(1, $2) n""",
            scope,
            count,
            octets,
        )
        await conn.execute("UPDATE scopes SET head = $2 WHERE scope = $1", scope, count + 1)
    finally:
        await conn.close()


@pytest.mark.parametrize("page_size", [0, 1_000])
async def test_list_changes_fits_the_default_message_size(server: Server, page_size: int) -> None:
    await fill(server, "s", 60, 100 * KIB)
    cursor, keys, more = core_pb2.ScopeCursor(scope="s"), [], True
    while more:
        page = await server.backend(pb.ListChangesRequest(cursor=cursor, page_size=page_size))
        assert page.ByteSize() <= (1 << 20) + KIB
        keys += [change.key for change in page.changes]
        cursor, more = page.next_cursor, page.more
    assert keys == ["first", *(f"k{n}" for n in range(1, 61))]


async def test_watch_hints_catches_up_within_the_default_message_size(server: Server) -> None:
    await fill(server, "s", 60, 100 * KIB)
    await server.add("s", "ann")
    watch = server.user("ann").watch(cursors=[core_pb2.ScopeCursor(scope="s", sequence=0)])
    sequences = [(await watch.next("change")).sequence for _ in range(61)]
    watch.call.cancel()
    assert sequences == list(range(1, 62))


async def test_smart_sync_completes_a_36_mib_scope(server: Server) -> None:
    own = {name: value for name, value in CHANNEL_OPTIONS.items() if name != "grpc.max_receive_message_length"}
    await fill(server, "s", 600, 60 * KIB)
    await server.add("s", "ann")
    await server.register("ann", "phone")
    store, clock = Store(), DeviceClock()
    async with (
        client_of(server.address, token=user_token("ann"), rule=ClientRule(channel_options=own)) as client,
        SmartSync(client, "phone", on_changes=store.apply, clock=clock, streams=False),
    ):
        await wait_until(lambda: len(store.rows.get("s", {})) == 601)
    assert store.applied == list(range(1, 602))
