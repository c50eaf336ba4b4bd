"""Two users of one app, of whom one has a bit of everything; and what one asks for to get at it."""

from __future__ import annotations

from typing import Any

import asyncpg
from google.protobuf.message import Message

from syncbeat.v1 import auth_service_pb2, core_pb2, directory_service_pb2, sync_service_pb2
from syncbeat_server.storage.postgres.database import RowOwner
from syncbeat_server.sync.model import DeviceKey
from tests.support.fake_clock import wait_until
from tests.support.rpc_server import Server

DENIED = ("PERMISSION_DENIED", "ACCESS_DENIED")
BOB = RowOwner("default", "bob")
PHONE = DeviceKey("default", "bob", "bobs phone")
TOKEN = "bobs-registration-token"
FULL = {
    *("devices", "scopes", "scope_members", "changes", "device_cursors", "request_records"),
    *("notifications", "deliveries", "dedupe_windows", "token_moves", "sessions", "preferences"),
}


def change(scope: str, key: str = "k", **fields: Any) -> core_pb2.NewChange:
    return core_pb2.NewChange(**{"scope": scope, "key": key, "merge_patch_json": '{"by": "somebody"}', **fields})


def publish(*changes: core_pb2.NewChange, **fields: Any) -> Message:
    return sync_service_pb2.PublishChangesRequest(changes=changes, **fields)


def at(scope: str, sequence: int | None = None) -> core_pb2.ScopeCursor:
    return core_pb2.ScopeCursor(scope=scope, sequence=sequence)


async def people(server: Server) -> str:
    """Bob has a bit of everything; alice has a scope of her own, and reads one of bob's. Bob's session."""
    await server.register("mallory", "bobs phone", TOKEN)
    await server.register("bob", PHONE.device_id, TOKEN)
    await server.register("alice", "her phone", "alices-token")
    await server.add("bobs", "bob")
    await server.add("shared", "bob", readers=("alice",))
    await server.add("hers", "alice")
    trigger = core_pb2.SyncTrigger(type="t")
    bob = server.user("bob")
    for scope in ("bobs", "shared"):
        await bob(publish(change(scope), change(scope, "k2"), trigger=trigger, request_id=f"r {scope}"))
    await bob(directory_service_pb2.SetPreferencesRequest(muted_types=["ads"]))
    heads = (await bob(sync_service_pb2.GetHintRequest(device_id=PHONE.device_id))).hint.heads
    watch = bob.watch(device_id=PHONE.device_id, cursors=heads)
    await watch.opened()
    watch.call.cancel()
    session = auth_service_pb2.CreateSessionRequest(user_id="bob", device_id=PHONE.device_id, request_id="r session")
    session_id: str = (await server.backend(session)).session_id
    await until_recorded(server)
    assert {table for table, rows in (await server.rows()).items() if rows} >= FULL
    return session_id


async def until_recorded(server: Server) -> None:
    """Return when all is written that no answer waits for: what bob's stream has shown, and that a writer came."""
    conn = await asyncpg.connect(server.urls.admin_url)

    async def recorded() -> bool:
        cursors = await conn.fetchval("SELECT count(*) FROM device_cursors")
        written = await conn.fetchval("SELECT count(*) FROM scopes WHERE presence_at IS NOT NULL")
        return bool((cursors, written) == (2, 2))

    try:
        await wait_until(recorded)
    finally:
        await conn.close()
