"""Documents built to be large or slow, by one writer: each is answered soon, and all that is stored can be read."""

from __future__ import annotations

import asyncio
import json
import time

import grpc
import pytest

from syncbeat.v1 import core_pb2
from syncbeat.v1 import sync_service_pb2 as pb
from syncbeat_server.rpc.validation import value_checks
from syncbeat_server.rpc.validation.large_requests import LARGE_BYTES
from syncbeat_server.sync.content import merge_patch
from syncbeat_server.sync.content.json_limits import document_fault
from tests.support.hard_documents import drawn
from tests.support.rpc_server import METHODS, Server

pytestmark = pytest.mark.rpc

DOCUMENTS, HOT_KEYS = 60, 6
# 0.2 s by itself; a busy machine takes several times as long, what was quadratic took minutes.
MOST_S = 4.0


async def test_hard_documents_are_answered_soon_and_stay_readable(server: Server) -> None:
    await server.add("hard", "ann")
    await server.add("calm", "bob")
    ann, bob = server.user("ann"), server.user("bob")
    told: list[tuple[str, str] | None] = []
    waited: list[float] = []
    over = asyncio.Event()

    async def read_on() -> None:
        while not over.is_set():
            began = time.monotonic()
            await bob(pb.ListChangesRequest(cursor=core_pb2.ScopeCursor(scope="calm")), 30)
            waited.append(time.monotonic() - began)

    reading = asyncio.create_task(read_on())
    for number, text in enumerate(drawn(DOCUMENTS)):
        key = f"hot-{number % HOT_KEYS}" if number % 2 else f"key-{number}"
        request = pb.PublishChangesRequest(changes=[core_pb2.NewChange(scope="hard", key=key, merge_patch_json=text)])
        began = time.monotonic()
        refusal = await ann.outcome(METHODS["PublishChangesRequest"], request.SerializeToString())
        assert time.monotonic() - began < MOST_S, (len(text), text[:60])
        told.append(refusal.told if refusal else None)
    over.set()
    await reading
    assert set(told) == {None, ("INVALID_ARGUMENT", "INVALID_FIELD")}
    assert max(waited) < MOST_S

    read, cursor, more = 0, core_pb2.ScopeCursor(scope="hard"), True
    async with grpc.aio.insecure_channel(server.address) as channel:  # with gRPC's own limit of 4 MiB
        method = channel.unary_unary(
            "/syncbeat.v1.SyncService/ListChanges",
            request_serializer=pb.ListChangesRequest.SerializeToString,
            response_deserializer=pb.ListChangesResponse.FromString,
        )
        while more:
            page = await method(pb.ListChangesRequest(cursor=cursor), metadata=ann.metadata, timeout=30)
            for change in page.changes:
                json.loads(change.value_json)
                read += 1
            cursor, more = page.next_cursor, page.more
    assert read > told.count(None) // 3


async def test_large_documents_are_validated_and_merged_off_the_loop(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    await server.add("hard", "ann")
    here: list[str] = []
    read = merge_patch.read_json

    def checked(text: str, most_depth: int) -> str:
        here.append(text)
        return document_fault(text, most_depth)

    def read_here(patch: str) -> object:
        here.append(patch)
        return read(patch)

    monkeypatch.setattr(value_checks, "document_fault", checked)
    monkeypatch.setattr(merge_patch, "read_json", read_here)
    ann, method = server.user("ann"), METHODS["PublishChangesRequest"]

    async def publish(*patches: str, key: str = "k") -> tuple[tuple[str, str], tuple[str, ...]] | None:
        changes = [core_pb2.NewChange(scope="hard", key=key, merge_patch_json=patch) for patch in patches]
        refusal = await ann.outcome(method, pb.PublishChangesRequest(changes=changes).SerializeToString())
        return None if refusal is None else (refusal.told, refusal.fields)

    invalid = ("INVALID_ARGUMENT", "INVALID_FIELD")
    numbers, members = ",".join(["1e30"] * 20_000), ",".join(f'"k{n}":{{"a":1}}' for n in range(5_000))
    assert await publish(f"[{numbers}]") is None
    assert await publish("1", f"[{numbers},1e309]") == (invalid, ("changes[1].merge_patch_json",))
    assert await publish(f"[{numbers}") == (invalid, ("changes[0].merge_patch_json",))
    assert await publish(*(f"[{numbers[:5_000]}]" for _ in range(9))) == (
        invalid,
        tuple(f"changes[{n}].merge_patch_json" for n in range(9)),
    )
    assert await publish("{" + members + "}") is None  # an intricate patch
    assert await publish("{" + members + "}", '{"k1":null}', "{" + members + "}", key="l") is None  # several of a key
    assert await publish('{"k2":{"a":null,"b":[]}}') is None
    page = await ann(pb.ListChangesRequest(cursor=core_pb2.ScopeCursor(scope="hard")))
    values = {change.key: json.loads(change.value_json) for change in page.changes}
    assert len(values["l"]) == len(values["k"]) == 5_000
    assert values["k"]["k2"] == {"b": []}
    assert max(map(len, here)) <= LARGE_BYTES
