"""Values that were stored before they were bounded: clients that gRPC left at its defaults read past every one."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import asyncpg
import grpc
import pytest

from syncbeat.v1 import core_pb2, sync_service_pb2_grpc
from syncbeat.v1 import sync_service_pb2 as pb
from tests.support.rpc_server import Server

pytestmark = pytest.mark.rpc

MOST_S = 30.0
# As SQL: what each makes of a megabyte of jsonb.
VALUES = {
    "whole": "(SELECT jsonb_agg(1e308::numeric * 1.5) FROM generate_series(1, 60000))",
    "negative": "(SELECT jsonb_agg(-17e300::numeric) FROM generate_series(1, 30000))",
    "fractions": "(SELECT jsonb_agg('1e-307'::numeric) FROM generate_series(1, 7000))",
    "in members": "(SELECT jsonb_object_agg('k' || n, 1e308::numeric) FROM generate_series(1, 30000) n)",
    "beside strings": "jsonb_build_array(repeat('\"1' || repeat('0', 90) || '\\', 5000), 1e300, repeat('x', 300000))",
    "two megabytes": "to_jsonb(repeat(E'\\n', 1000000))",
}
OMITTED = {"control": "to_jsonb(repeat(E'\\x01', 1000000))", "beyond reading": "to_jsonb(repeat('x', 40000000))"}
KEYS = ["before", *VALUES, *OMITTED, "after"]


@pytest.fixture
async def old(server: Server) -> Server:
    """A server whose feed has small values around the old ones."""
    await server.add("s", "ann")
    await server.register("ann", "phone")
    await server.publish("s", "before", '"small"')
    conn = await asyncpg.connect(server.urls.admin_url)
    try:
        await conn.execute(
            "ALTER TABLE changes DROP CONSTRAINT changes_value_size, DROP CONSTRAINT changes_value_octets"
        )
        for sequence, (key, value) in enumerate((VALUES | OMITTED).items(), 2):
            await conn.execute(
                f"INSERT INTO changes (app_id, scope, key, value, sequence, changed_at)"
                f" VALUES ('default', 's', $1, {value}, $2, now())",
                key,
                sequence,
            )
        await conn.execute("UPDATE scopes SET head = $1", len(VALUES | OMITTED) + 1)
    finally:
        await conn.close()
    await server.publish("s", "after", '"small"')
    return server


@pytest.fixture
async def sync(old: Server) -> AsyncIterator[Any]:
    """Calls of a client with the limits of gRPC's own."""
    async with grpc.aio.insecure_channel(old.address) as channel:
        yield sync_service_pb2_grpc.SyncServiceStub(channel)


async def check(server: Server, changes: list[Any]) -> None:
    assert [change.key for change in changes] == KEYS
    conn = await asyncpg.connect(server.urls.admin_url)
    try:
        for change in changes:
            octets = await conn.fetchval("SELECT octets FROM changes WHERE key = $1", change.key)
            assert not change.deleted
            if change.key in OMITTED:
                assert (change.value_json, change.omitted_octets) == ("", octets)
                continue
            assert change.omitted_octets == 0
            assert await conn.fetchval(
                "SELECT value = $2::text::jsonb FROM changes WHERE key = $1", change.key, change.value_json
            )
            if change.key in ("whole", "fractions"):
                assert len({*json.loads(change.value_json, parse_float=Decimal)}) == 1
    finally:
        await conn.close()


async def test_legacy_values_are_listed_to_the_end(old: Server, sync: Any) -> None:
    ann, changes = old.user("ann"), []
    cursor, more = core_pb2.ScopeCursor(scope="s"), True
    while more:
        page = await sync.ListChanges(pb.ListChangesRequest(cursor=cursor), metadata=ann.metadata, timeout=MOST_S)
        changes += page.changes
        cursor, more = page.next_cursor, page.more
    await check(old, changes)


@pytest.mark.parametrize("who", ["member", "firehose", "firehose from cursors"])
async def test_legacy_values_do_not_end_a_stream(old: Server, sync: Any, who: str) -> None:
    metadata = (old.user("ann") if who == "member" else old.backend).metadata
    page = await sync.ListChanges(
        pb.ListChangesRequest(cursor=core_pb2.ScopeCursor(scope="s"), page_size=1), metadata=metadata, timeout=MOST_S
    )
    request = pb.WatchHintsRequest(cursors=[page.next_cursor], all_scopes=who != "member")
    if who == "member":
        request.device_id = "phone"
    elif who == "firehose":
        request.token = ""
    changes = [*page.changes]
    call = sync.WatchHints(request, metadata=metadata, timeout=60)
    try:
        while len(changes) < len(KEYS):
            event = await call.read()
            assert event is not grpc.aio.EOF
            if event.WhichOneof("event") == "change":
                changes.append(event.change)
    finally:
        call.cancel()
    await check(old, changes)
