"""Bounds what parsing costs the loop: more items than the contract has, and gzip that says next to nothing."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.message_factory import GetMessageClass

from syncbeat.v1 import core_pb2, directory_service_pb2, event_service_pb2, push_service_pb2, sync_service_pb2
from syncbeat_server.errors import FieldReason, InvalidRequest
from syncbeat_server.rpc.contract.options import access_of
from syncbeat_server.rpc.server import CONTRACT
from syncbeat_server.rpc.validation.compression import MAX_REQUEST_BYTES, decompress
from syncbeat_server.rpc.validation.item_bounds import excess_items, item_bounds
from syncbeat_server.rpc.validation.wire_format import MAX_PUBLIC_BYTES
from tests.support.cpu_time import least_cpu_s
from tests.support.rpc_server import METHODS, Server

pytestmark = pytest.mark.rpc

EMPTY_ITEM = b"\x00"
SERVED = [method for service in CONTRACT for method in service.methods]


def tag(message: str, field: str) -> bytes:
    number: int = METHODS[message].input_type.fields_by_name[field].number
    return bytes([number << 3 | 2])


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def items(message: str, field: str, octets: int = MAX_REQUEST_BYTES) -> bytes:
    return (tag(message, field) + EMPTY_ITEM) * (octets // 2)


def effects() -> bytes:
    kind = event_service_pb2.EventEffects.DESCRIPTOR
    inner = bytes([kind.fields_by_name["changes"].number << 3 | 2, 0]) * 600_000
    return tag("IngestEventRequest", "effects") + varint(len(inner)) + inner


BOMBS = {
    "cursors": ("GetHintRequest", items("GetHintRequest", "cursors"), "cursors"),
    "cursors of a stream": ("WatchHintsRequest", items("WatchHintsRequest", "cursors"), "cursors"),
    "changes": ("PublishChangesRequest", items("PublishChangesRequest", "changes"), "changes"),
    "changes of effects": ("IngestEventRequest", effects(), "effects.changes"),
    "effects again and again": ("IngestEventRequest", items("IngestEventRequest", "effects"), "effects"),
    "unknown fields": ("GetHintRequest", b"\x7a\x00" * 650_000, ""),
    "group": ("GetHintRequest", b"\x7b" + items("GetHintRequest", "cursors", 1_000_000), ""),
    "cut short": ("GetHintRequest", b"\x7a\xff\xff\x7f" + items("GetHintRequest", "cursors", 100_000), ""),
}


@pytest.fixture(scope="module")
def parsing_s() -> float:
    """Seconds of CPU to parse the largest request of empty items."""
    message, data, _ = BOMBS["cursors"]
    parse = GetMessageClass(METHODS[message].input_type).FromString
    return least_cpu_s(lambda: parse(data))


@pytest.mark.parametrize(("message", "data", "path"), BOMBS.values(), ids=BOMBS)
async def test_request_with_too_many_items_is_refused_before_it_is_parsed(
    server: Server, parsing_s: float, message: str, data: bytes, path: str
) -> None:
    bounds = item_bounds(METHODS[message].input_type)
    assert least_cpu_s(lambda: excess_items(bounds, data)) < parsing_s / 4
    fault = excess_items(bounds, data)
    assert fault is not None
    assert fault.path == path
    assert fault.reason is FieldReason.TOO_MANY or path == ""
    caller = server.user("ann") if "USER" in access_of(METHODS[message]) else server.backend
    refusal = await caller.raw_refusal(METHODS[message], data)
    assert (refusal.told, refusal.fields) == (("INVALID_ARGUMENT", "INVALID_FIELD"), (path,))


def largest() -> list[Any]:
    cursors = [core_pb2.ScopeCursor(scope=f"{number:0128}", epoch="e" * 36, sequence=2**62) for number in range(2_000)]
    change = core_pb2.NewChange(scope="s" * 128, key="k" * 128, merge_patch_json='{"a": 1}')
    members = [directory_service_pb2.ScopeMember(user_id=f"{number:0128}") for number in range(1_000)]
    effects = event_service_pb2.EventEffects(changes=[change] * 1_000)
    effects.members.add(scope="s").add.extend(members)
    return [
        sync_service_pb2.GetHintRequest(cursors=cursors),
        sync_service_pb2.PublishChangesRequest(changes=[change] * 1_000),
        push_service_pb2.SendNotificationRequest(user_ids=core_pb2.UserIds(ids=["u" * 128] * 1_000)),
        directory_service_pb2.AddScopeMembersRequest(members=members),
        event_service_pb2.IngestEventRequest(effects=effects),
    ]


@pytest.mark.parametrize("message", largest(), ids=lambda message: str(message.DESCRIPTOR.name))
def test_largest_request_of_the_contract_is_within_the_bounds(message: Any) -> None:
    data = message.SerializeToString()
    assert len(data) > 16_384
    assert excess_items(item_bounds(message.DESCRIPTOR), data) is None


@pytest.mark.parametrize("method", SERVED, ids=lambda method: str(method.name))
def test_every_request_has_bounds_that_name_its_repeated_fields(method: Any) -> None:
    kind = method.input_type
    empty = GetMessageClass(kind)()
    assert excess_items(item_bounds(kind), empty.SerializeToString()) is None
    for field in kind.fields:
        if field.is_repeated:
            fault = excess_items(item_bounds(kind), (varint(field.number << 3 | 2) + EMPTY_ITEM) * 2_001)
            assert fault is not None
            assert fault.path == field.name


def test_gzip_of_a_public_method_is_not_read_beyond_what_its_limit_can_take() -> None:
    empty_blocks = int("0100000000" * 800_000, 2).to_bytes(1_000_000)
    data = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff" + empty_blocks

    def refused() -> None:
        with pytest.raises(InvalidRequest):
            decompress(data, MAX_PUBLIC_BYTES)

    assert least_cpu_s(refused) < 0.001
