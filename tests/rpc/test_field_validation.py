"""Bad input over the wire: every bad field is named, nothing is written, and it is never our fault.

The cases of each RPC are made from the contract's own field rules, so no field can be forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import grpc
import orjson
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message

from syncbeat.v1 import core_pb2, push_service_pb2
from syncbeat_server.rpc.contract.field_rules import FieldRules
from syncbeat_server.rpc.contract.options import rules_of
from tests.support.rpc_server import IMPLEMENTED, METHODS, Server, each_implemented
from tests.support.valid_requests import fill, inner, is_map, needed, one_required, request_of

pytestmark = [pytest.mark.rpc, pytest.mark.asyncio(loop_scope="module")]

INVALID = ("INVALID_ARGUMENT", "INVALID_FIELD")
MARK, NO_UTF8 = "@@@@", b"\xff@@@"
Break = Callable[[Message, str], None]
"""Breaks a field, given its message and its name."""


Steps = tuple[FieldDescriptor, ...]


def sites(message: Descriptor, steps: Steps = ()) -> Iterator[Steps]:
    """The way to each field that a request can hold."""
    for field in message.fields:
        yield (*steps, field)
        kind = inner(field)
        if kind is not None:
            yield from sites(kind, (*steps, field))


def path_to(steps: Steps) -> str:
    *outer, last = steps
    return ".".join([field.name + ("[0]" if field.is_repeated else "") for field in outer] + [last.name])


def reach(message: Any, steps: Steps) -> Message:
    """The message that holds the last step, made where it is not there."""
    for field in steps[:-1]:
        value = getattr(message, field.name)
        if field.is_repeated:
            message = value[0] if len(value) else fill(value.add())
        else:
            if not message.HasField(field.name):
                value.SetInParent()
                fill(value)
            message = value
    assert isinstance(message, Message)
    return message


def setting(*values: object) -> Iterator[Break]:
    for value in values:
        yield partial(_set, value)


def appending(*values: object) -> Iterator[Break]:
    for value in values:
        yield partial(_append, value)


def _set(value: object, message: Message, name: str) -> None:
    setattr(message, name, value)


def _append(value: object, message: Message, name: str) -> None:
    message.ClearField(name)
    getattr(message, name).append(value)


def span(seconds: int, nanos: int = 0) -> Break:
    def breaks(message: Message, name: str) -> None:
        value = getattr(message, name)
        value.seconds, value.nanos = seconds, nanos

    return breaks


def nanos_apart(millis: int, nanos: int) -> Break:
    """Set a span to so many nanoseconds more than some milliseconds."""
    total = millis * 1_000_000 + nanos
    sign = -1 if total < 0 else 1
    seconds, rest = divmod(abs(total), 1_000_000_000)
    return span(sign * seconds, sign * rest)


def bad_texts(bounds: FieldRules) -> list[str]:
    most = bounds.max_bytes
    assert most is not None
    texts = ["x" * (most + 1), "é" * (most // 2 + 1), "a\0b", "\x1b[0m", "\x7f"]
    if bounds.visible_ascii:
        texts += ["a b", " ab", "ab ", " ", "é", "\u00a0", "\u2028", "\ufeffab", "\uff41", "a\u200bb", "🔑"]
    return texts if bounds.multiline else [*texts, "a\nb", "\t"]


def bad_documents(bounds: FieldRules) -> list[str]:
    depth, most = bounds.max_depth, bounds.max_bytes
    assert most is not None
    return [
        *("nope", "{", "[1,]", "NaN", "-Infinity", "{'a':1}", '"a\tb"', "\ufeff{}", "01", '{"a":1}x', "\0"),
        *('"\\ud800"', '"\\udc00x"', '{"\\ud800":1}', '"\\u0000"', '{"\\u0000":1}', '"\\\\\\u0000"', '"\\x"'),
        *("1e400", "-1e400", "9" * 400),
        *("[" * (depth + 1) + "]" * (depth + 1), '{"a":' * (depth + 1) + "1" + "}" * (depth + 1)),
        *("[" * 5_000 + "]" * 5_000, '{"a":' * 5_000, "[" * 100_000),
        '"' + "x" * (most - 1) + '"',
    ]


def breaks_of(field: FieldDescriptor) -> Iterator[Break]:
    """Every way to break the rules of one field, so that the field itself is named."""
    bounds = rules_of(field)
    if one_required(field) and bounds.not_empty:
        yield from setting("")
    elif needed(field):
        yield lambda message, name: message.ClearField(name)
    if field.is_repeated:
        assert bounds.max_items is not None
        yield from overfull(field, bounds.max_items)
    elif field.type == FieldDescriptor.TYPE_STRING:
        yield from setting(*(bad_documents(bounds) if bounds.json else bad_texts(bounds)))
    elif field.type == FieldDescriptor.TYPE_ENUM:
        yield from setting(99, -1, 2**31 - 1, -(2**31))
    elif field.message_type is not None and field.message_type.name == "Duration":
        least, most = bounds.min_millis, bounds.max_millis
        assert least is not None
        assert most is not None
        yield from (span(-1), span(0, -1), span(0, 10**9), span(1, -1), span(-1, 1), span(2**62), span(-(2**62)))
        # By the smallest step there is, on either side, and below nothing.
        yield from (nanos_apart(most, 1), nanos_apart(least, -1), span(0, -500_000_000), span(0, -999_999_999))
        yield nanos_apart(most, 1_000_000)
    elif field.message_type is not None and field.message_type.name == "Timestamp":
        yield from (span(2**62), span(-(2**62)), span(253_402_300_800), span(0, -1), span(0, 10**9))
    elif bounds.min_value is not None:
        limit = 2 ** (31 if field.cpp_type == FieldDescriptor.CPPTYPE_INT32 else 63)
        yield from setting(bounds.min_value - 1, -limit)
        if bounds.max_value is not None:
            yield from setting(bounds.max_value + 1, limit - 1)


def overfull(field: FieldDescriptor, most: int) -> Iterator[Break]:
    def breaks(message: Message, name: str) -> None:
        message.ClearField(name)
        value = getattr(message, name)
        for index in range(most + 1):
            if is_map(field):
                value[f"n{index}"] = ""
            elif inner(field) is not None:
                fill(value.add())
            else:
                value.append("x")

    yield breaks


def cases(method: MethodDescriptor) -> Iterator[tuple[str, Message]]:
    """(path of the bad field, request that is bad in nothing else)."""
    for steps in sites(method.input_type):
        field, path = steps[-1], path_to(steps)
        for breaks in breaks_of(field):
            yield path, broken(method, steps, breaks)
        if is_map(field):
            for key, value in (("", ""), ("k" * 129, ""), ("a\nb", ""), ("k", "x" * 2049), ("k", "\0")):
                request = request_of(method)
                getattr(reach(request, steps), field.name)[key] = value
                yield f"{path}[{orjson.dumps(key[:32]).decode()}]", request
        elif field.is_repeated and inner(field) is None:
            for breaks in appending("", *bad_texts(rules_of(field))):
                yield f"{path}[0]", broken(method, steps, breaks)


def broken(method: MethodDescriptor, steps: Steps, breaks: Break) -> Message:
    request = request_of(method)
    holder = reach(request, steps)
    breaks(holder, steps[-1].name)
    return request


@each_implemented
async def test_validation_names_each_bad_field(module_server: Server, method: MethodDescriptor) -> None:
    before = await module_server.rows()
    seen = set()
    for path, request in cases(method):
        refusal = await module_server.allowed(request.DESCRIPTOR.name).refusal(request)
        assert (refusal.told, refusal.fields) == (INVALID, (path,)), str(request)[:500]
        seen.add(path)
    assert len(seen) >= len(method.input_type.fields) - 2  # flags have no wrong value
    assert await module_server.rows() == before


@each_implemented
async def test_validation_names_all_bad_fields_at_once(module_server: Server, method: MethodDescriptor) -> None:
    request, paths = request_of(method), set()
    for steps in sites(method.input_type):
        field = steps[-1]
        chosen = field.containing_oneof is None or field.containing_oneof.fields[0] is field
        breaks = [] if field.is_repeated or field.type == FieldDescriptor.TYPE_MESSAGE else list(breaks_of(field))
        if breaks and chosen and not any(step.containing_oneof for step in steps[:-1]):
            breaks[-1](reach(request, steps), field.name)
            paths.add(path_to(steps))
    refusal = await module_server.allowed(request.DESCRIPTOR.name).refusal(request)
    assert refusal.told == INVALID
    told = set(refusal.fields)
    # Of more than a trailer has room for it names as many as there is.
    assert told == paths or (told < paths and len(told) >= FIT_INTO_A_TRAILER), paths - told


@each_implemented
async def test_validation_names_a_field_of_invalid_utf8(module_server: Server, method: MethodDescriptor) -> None:
    before = await module_server.rows()
    named = 0
    for steps in sites(method.input_type):
        field = steps[-1]
        if field.type != FieldDescriptor.TYPE_STRING:
            continue
        put = next(appending(MARK) if field.is_repeated else setting(MARK))
        data = broken(method, steps, put).SerializeToString()
        assert data.count(MARK.encode()) == 1
        refusal = await module_server.allowed(method.input_type.name).raw_refusal(
            method, data.replace(MARK.encode(), NO_UTF8)
        )
        path = path_to(steps) + ("[0]" if field.is_repeated else "")
        assert (refusal.told, refusal.fields) == (INVALID, (path,))
        named += 1
    assert named
    assert await module_server.rows() == before


async def test_validation_names_several_fields_and_map_entries_of_invalid_utf8(module_server: Server) -> None:
    shown = core_pb2.Notification(title=MARK, data={MARK: "v", "k": MARK})
    request = push_service_pb2.SendNotificationRequest(
        type=MARK, notification=shown, user_ids=core_pb2.UserIds(ids=["u", MARK])
    )
    data = request.SerializeToString().replace(MARK.encode(), NO_UTF8)
    refusal = await module_server.backend.raw_refusal(METHODS["SendNotificationRequest"], data)
    assert refusal.told == INVALID
    assert set(refusal.fields) == {"type", "notification.title", "notification.data", "user_ids.ids[1]"}


GARBAGE = {
    "a tag alone": b"\x0a",
    "a length beyond the end": b"\x0a\xff\xff\xff\xff\x0f",
    "the field number 0": b"\x02\x00",
    "a varint without an end": b"\x08" + b"\xff" * 11,
    "the end of a group that never began": b"\x0c",
    "a group without an end": b"\x0b",
    "a thousand groups": b"\x0b" * 1_000,
    "the wire type 7": b"\x0f",
    "text": b"GET / HTTP/1.1\r\n\r\n",
    "JSON": b'{"device_id": "d"}',
}


@each_implemented
async def test_validation_refuses_garbage_bytes(module_server: Server, method: MethodDescriptor) -> None:
    before = await module_server.rows()
    for name, data in GARBAGE.items():
        refusal = await module_server.allowed(method.input_type.name).raw_refusal(method, data)
        assert (refusal.told, refusal.fields) == (INVALID, ("",)), name
    assert await module_server.rows() == before


EMPTY = {
    "GetHint": ("device_id", "user_id"),
    "WatchHints": ("user_id",),
    "ReportActivity": ("device_id", "activity", "user_id"),
    "BoostScope": ("scope", "priority", "duration"),
    "PublishChanges": ("changes",),
    "ListChanges": ("cursor",),
    "SendNotification": ("notification", "target"),
    "GetNotification": ("notification_id",),
    "WatchDeliveries": ("notification_id",),
    "AcknowledgeDelivery": ("ack_token", "kind"),
    "CancelNotification": ("notification_id",),
    "RedriveDeliveries": ("filter",),
    "SetPreferences": ("user_id",),
    "GetPreferences": ("user_id",),
    "RegisterDevice": ("device_id", "platform", "user_id"),
    "UnregisterDevice": ("device_id", "user_id"),
    "GetDevice": ("device_id", "user_id"),
    "ListDevices": ("user_id",),
    "AddScopeMembers": ("scope", "members"),
    "RemoveScopeMembers": ("scope", "user_ids"),
    "ListScopeMembers": ("scope",),
    "ListScopes": ("user_id",),
    "DisableUser": ("user_id",),
    "EnableUser": ("user_id",),
    "DeleteUser": ("user_id",),
    "SetUserTier": ("user_id",),
    "GetUserTier": ("user_id",),
    "IngestEvent": ("source", "event_id", "type"),
    "GetEvent": ("source", "event_id"),
    "RetryEvent": ("source", "event_id"),
    "CreateSession": ("user_id",),
    "RefreshSession": ("refresh_token",),
    "CreateLinkToken": ("user_id", "issuer"),
    "LinkIdentity": ("access_token",),
    "RevokeSession": ("session_id", "user_id"),
    "RevokeUser": ("user_id",),
    "ListSessions": ("user_id",),
    "InvalidateTokenCache": ("user_id",),
}
FIT_INTO_A_TRAILER = 15
ASKS_FOR_NOTHING = {"ListDeliveries", "ListEvents", "GetTokenCacheStats"}
ASKS_FOR_NOTHING |= {"GetStatus", "GetSloReport", "ListAuditEntries"}


async def test_validation_of_empty_requests(module_server: Server) -> None:
    assert {method.name for method in IMPLEMENTED} == EMPTY.keys() | ASKS_FOR_NOTHING
    before = await module_server.rows()
    for method in IMPLEMENTED:
        if method.name in EMPTY:
            refusal = await module_server.allowed(method.input_type.name).raw_refusal(method, b"")
            assert (refusal.told, refusal.fields) == (INVALID, EMPTY[method.name])
    assert await module_server.rows() == before


async def test_method_that_is_not_in_the_contract_is_unimplemented(module_server: Server) -> None:
    assert list(METHODS.values()) == IMPLEMENTED
    unknown: Any = module_server.channel.unary_unary("/syncbeat.v1.SyncService/NoSuchMethod")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await unknown(b"", timeout=20)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
