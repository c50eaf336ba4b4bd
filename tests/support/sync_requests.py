"""Requests of SyncService, as short as its tests need them."""

from __future__ import annotations

from typing import Any

import orjson

from syncbeat.v1 import core_pb2, sync_service_pb2
from tests.support.rpc_server import Caller, Server

S = "couple:1"


PACED = 1.1 / 0.9  # how far apart pacing puts two hints that are alike


def at(scope: str = S, sequence: int | None = None, epoch: str = "") -> core_pb2.ScopeCursor:
    return core_pb2.ScopeCursor(scope=scope, sequence=sequence, epoch=epoch)


def change(key: str = "k", value: object = 1, scope: str = S, **fields: Any) -> core_pb2.NewChange:
    patch = "" if fields.get("deleted") else orjson.dumps(value).decode()
    return core_pb2.NewChange(scope=scope, key=key, merge_patch_json=patch, **fields)


def publish(*changes: core_pb2.NewChange, **fields: Any) -> sync_service_pb2.PublishChangesRequest:
    return sync_service_pb2.PublishChangesRequest(changes=changes, **fields)


def hint_request(*cursors: core_pb2.ScopeCursor, **fields: Any) -> sync_service_pb2.GetHintRequest:
    return sync_service_pb2.GetHintRequest(device_id="phone", cursors=cursors, **fields)


async def feed(caller: Caller, cursor: core_pb2.ScopeCursor | None = None, **fields: Any) -> Any:
    return await caller(sync_service_pb2.ListChangesRequest(cursor=cursor or at(), **fields))


async def with_a_couple(server: Server) -> Server:
    """Alice and bob write one scope; alice has a phone."""
    await server.add(S, "alice", "bob")
    await server.register("alice", "phone")
    return server
