"""Requests that keep to the field rules, and are wrong all the same."""

from __future__ import annotations

import base64
from typing import Any, cast

import grpc
import orjson
import pytest
from google.protobuf.message import Message

from syncbeat.v1 import core_pb2, directory_service_pb2, event_service_pb2, push_service_pb2, sync_service_pb2
from tests.support.rpc_server import (
    METHODS,
    Server,
)

pytestmark = [pytest.mark.rpc, pytest.mark.asyncio(loop_scope="module")]

INVALID = ("INVALID_ARGUMENT", "INVALID_FIELD")


def change(**fields: Any) -> core_pb2.NewChange:
    return core_pb2.NewChange(**{"scope": "s", "key": "k", "merge_patch_json": "1", **fields})


def publish(*changes: core_pb2.NewChange, **fields: Any) -> Message:
    return sync_service_pb2.PublishChangesRequest(changes=changes, **fields)


def sized(size: int) -> Message:
    """A publish of so many bytes."""
    request = publish(*[change(key=str(index), merge_patch_json='"' + "x" * 250_000 + '"') for index in range(5)])
    last = cast(Any, request).changes[4]
    last.merge_patch_json = '"' + "x" * (250_000 - (request.ByteSize() - size)) + '"'
    assert request.ByteSize() == size
    return request


def send(**fields: Any) -> Message:
    shown = {"notification": core_pb2.Notification(title="t"), "user_ids": core_pb2.UserIds(ids=["u"]), **fields}
    return push_service_pb2.SendNotificationRequest(**shown)


def data(**entries: str) -> core_pb2.Notification:
    return core_pb2.Notification(data=entries)


BEYOND_THE_RULES: list[tuple[Message, tuple[str, ...]]] = [
    (publish(change(merge_patch_json="")), ("changes[0].merge_patch_json",)),
    (
        publish(change(), change(deleted=True), change(merge_patch_json="")),
        ("changes[1].merge_patch_json", "changes[2].merge_patch_json"),
    ),
    (sized((1 << 20) + 1), ("changes",)),
    (
        publish(change(), trigger=core_pb2.SyncTrigger(notification=core_pb2.Notification(template="t"))),
        ("trigger.notification.template",),
    ),
    (push_service_pb2.SendNotificationRequest(notification=core_pb2.Notification(title="t")), ("target",)),
    (push_service_pb2.SendNotificationRequest(notification=core_pb2.Notification(title="t"), scope=""), ("scope",)),
    (send(notification=core_pb2.Notification(sound="s")), ("notification",)),
    (send(notification=data(**{f"k{index}": "v" * 2000 for index in range(2)})), ("notification",)),
    (send(notification=core_pb2.Notification(template="t")), ("notification.template",)),
    (
        send(notification=data(**{"google.x": "", "from": ""})),
        ('notification.data["from"]', 'notification.data["google.x"]'),
    ),
    (send(schedule_time={"seconds": 253_402_300_799}), ("schedule_time",)),
    (send(ttl={"nanos": 999_999_999}), ("ttl",)),
    (send(ttl={"seconds": -1}), ("ttl",)),
    (push_service_pb2.GetNotificationRequest(notification_id="no-uuid"), ("notification_id",)),
    (
        push_service_pb2.ListDeliveriesRequest(filter=push_service_pb2.DeliveryFilter(notification_id="x")),
        ("filter.notification_id",),
    ),
    *(
        (
            directory_service_pb2.SetPreferencesRequest(
                user_id="u", quiet_hours=directory_service_pb2.QuietHours(end_minute=60, time_zone=zone)
            ),
            ("quiet_hours.time_zone",),
        )
        for zone in ("Mars/Base", "../../etc/passwd", "/etc/passwd", "Europe", "é")
    ),
    *(
        (directory_service_pb2.ListDevicesRequest(user_id="u", page_token=token), ("page_token",))
        for token in ("x", "é", "bnVsbA==", "W10=", "WyJ4IiwgMV0=", "eyJhIjoxLCJiIjoyfQ==", "W" * 2000)
    ),
]


@pytest.mark.parametrize(
    ("request_", "paths"), BEYOND_THE_RULES, ids=lambda value: ",".join(value) if isinstance(value, tuple) else None
)
async def test_validation_beyond_field_rules(module_server: Server, request_: Message, paths: tuple[str, ...]) -> None:
    before = await module_server.rows()
    refusal = await module_server.backend.refusal(request_)
    assert (refusal.told, refusal.fields) == (INVALID, paths)
    assert await module_server.rows() == before


EVENT_PLACES = [r'[0,"\u0000","x"]', r'[0,"x","\u0000"]', '[0,["x"],"x"]', "[1e300,1,2]", r'"\u0000"']
PAGED = [
    (directory_service_pb2.ListDevicesRequest, {"user_id": "u"}),
    (directory_service_pb2.ListScopesRequest, {"user_id": "u"}),
    (directory_service_pb2.ListScopeMembersRequest, {"scope": "paged"}),
    (push_service_pb2.ListDeliveriesRequest, {}),
    (event_service_pb2.ListEventsRequest, {}),
]


@pytest.mark.parametrize(("kind", "fields"), PAGED, ids=lambda value: getattr(value, "__name__", None))
async def test_page_token_of_another_place_is_refused(module_server: Server, kind: Any, fields: dict[str, str]) -> None:
    server = module_server
    await server.add("paged", "u", "v")
    await server.add("paged too", "u")
    for device in ("d1", "d2"):
        await server.register("u", device)
    await server.backend(send(user_ids=core_pb2.UserIds(ids=["u"])))
    for name in ("e1", "e2"):
        await server.backend(event_service_pb2.IngestEventRequest(source="s", event_id=name, type="t"))
    page = await server.backend(kind(page_size=1, **fields))
    binding, _ = orjson.loads(base64.urlsafe_b64decode(page.next_page_token))
    for place in (*EVENT_PLACES, "\0", "no id", "x" * 200, 1, None, ["d1"], {"a": 1}):
        forged = base64.urlsafe_b64encode(orjson.dumps([binding, place])).decode()
        request = kind(page_size=1, page_token=forged, **fields)
        refusal = await server.backend.outcome(METHODS[kind.DESCRIPTOR.name], request.SerializeToString())
        assert refusal is None or (refusal.told, refusal.fields) == (INVALID, ("page_token",))
    other = page.next_page_token if kind is not PAGED[0][0] else page.next_page_token[:-4]
    assert (await server.user("u").refusal(PAGED[0][0](page_token=other))).fields == ("page_token",)


async def test_page_size_above_the_most_is_the_most(module_server: Server) -> None:
    await module_server.add("long", *(f"u{index:04}" for index in range(1_000)))
    await module_server.add("long", "u1000")
    for size in (1_001, 2**31 - 1):
        asked = directory_service_pb2.ListScopeMembersRequest(scope="long", page_size=size)
        assert len((await module_server.backend(asked)).members) == 1_000
    changes = [
        sync_service_pb2.PublishChangesRequest(changes=[change(key=f"{n} {i}") for i in range(600)]) for n in "ab"
    ]
    for request in changes:
        await module_server.backend(request)
    feed = sync_service_pb2.ListChangesRequest(cursor=core_pb2.ScopeCursor(scope="s"), page_size=2**31 - 1)
    assert len((await module_server.backend(feed)).changes) == 1_000


REASONS: list[tuple[Message, tuple[str, ...]]] = [
    (send(user_ids=core_pb2.UserIds(ids=[""])), ("REQUIRED",)),
    (send(type="t" * 129), ("TOO_LONG",)),
    (send(type="\0"), ("FORBIDDEN_CHARACTERS",)),
    (send(priority=99), ("UNKNOWN_VALUE",)),
    (send(user_ids=core_pb2.UserIds(ids=["u"] * 1_001)), ("TOO_MANY",)),
    (publish(change(merge_patch_json="[" * 33 + "]" * 33)), ("TOO_DEEP",)),
    (publish(change(merge_patch_json="{")), ("MALFORMED",)),
    (publish(change(merge_patch_json="1e309")), ("OUT_OF_RANGE",)),
    (publish(change(expected_sequence=-1), change(key="")), ("OUT_OF_RANGE", "REQUIRED")),
    (publish(change(deleted=True)), ("CONFLICT",)),
    (send(notification=data(delivery_id="x")), ("RESERVED",)),
    (send(notification=core_pb2.Notification(template="none")), ("UNKNOWN_VALUE",)),
]


@pytest.mark.parametrize(("request_", "reasons"), REASONS, ids=lambda value: "" if isinstance(value, Message) else None)
async def test_field_violation_has_a_reason(module_server: Server, request_: Message, reasons: tuple[str, ...]) -> None:
    refusal = await module_server.backend.refusal(request_)
    assert (refusal.told, refusal.field_reasons) == (INVALID, reasons)


async def test_field_violation_of_a_large_request_has_a_reason(module_server: Server) -> None:
    """A child process validates it."""
    refusal = await module_server.backend.refusal(publish(*[change()] * 999, change(merge_patch_json="{")))
    assert (refusal.fields, refusal.field_reasons) == (("changes[999].merge_patch_json",), ("MALFORMED",))


async def test_error_details_of_many_bad_fields_stay_small(module_server: Server) -> None:
    """Peers drop trailers of more than 8 KiB: the call would end without its reason."""
    entries = {"\U0001f600" * 31 + f"{index:02}" + "x" * 20: "\0" for index in range(64)}
    shown = core_pb2.Notification(data=entries)
    for request in (
        send(notification=shown),
        publish(*[core_pb2.NewChange(merge_patch_json="é", expected_sequence=-1)] * 1_000),
        publish(change(), trigger=core_pb2.SyncTrigger(notification=shown)),
    ):
        refusal = await module_server.allowed(request.DESCRIPTOR.name).refusal(request)
        assert refusal.told == INVALID
        assert 5 < len(refusal.fields) <= 50
        assert len("".join(refusal.fields).encode()) + len(refusal.message.encode()) < 4096


async def test_message_above_the_grpc_limit_is_refused_by_grpc(module_server: Server) -> None:
    before = await module_server.rows()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await module_server.backend(publish(*[change(merge_patch_json='"' + "x" * 250_000 + '"')] * 6))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert await module_server.rows() == before
    await module_server.backend(sized(1 << 20))
