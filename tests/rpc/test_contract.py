"""The contract keeps its own promises: who may call, what is bounded, how things are named and told."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, FileDescriptor, MethodDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from syncbeat import v1
from syncbeat.v1 import (
    auth_service_pb2,
    core_pb2,
    directory_service_pb2,
    error_reason_pb2,
    event_service_pb2,
    ops_service_pb2,
    push_service_pb2,
    sync_service_pb2,
)
from syncbeat_server import errors
from syncbeat_server.directory import model as directory
from syncbeat_server.directory.model import MAX_SCOPES
from syncbeat_server.errors import FieldViolation
from syncbeat_server.push import model as push
from syncbeat_server.rpc.contract.options import access_of, rules_of
from syncbeat_server.rpc.fastpath.compiled_validator import compile_fast_validator
from syncbeat_server.sync import model as sync

pytestmark = pytest.mark.unit

PROTOS = Path(__file__).resolve().parents[2] / "clients" / "protos" / "syncbeat" / "v1"

PUBLIC, USER, SERVICE, ADMIN = "PUBLIC", "USER", "SERVICE", "ADMIN"
EITHER = {USER, SERVICE}

# What the service is: the names never change, and who may call is changed on purpose only.
RPCS: dict[str, dict[str, set[str]]] = {
    "SyncService": {
        "GetHint": EITHER,
        "WatchHints": EITHER,
        "ReportActivity": EITHER,
        "PublishChanges": EITHER,
        "ListChanges": EITHER,
        "BoostScope": {SERVICE},
    },
    "PushService": {
        "SendNotification": {SERVICE},
        "GetNotification": {SERVICE},
        "ListDeliveries": {SERVICE},
        "WatchDeliveries": {SERVICE},
        "AcknowledgeDelivery": {PUBLIC},
        "CancelNotification": {SERVICE},
        "RedriveDeliveries": {ADMIN},
    },
    "DirectoryService": {
        "RegisterDevice": EITHER,
        "UnregisterDevice": EITHER,
        "GetDevice": EITHER,
        "ListDevices": EITHER,
        "SetPreferences": EITHER,
        "GetPreferences": EITHER,
        "AddScopeMembers": {SERVICE},
        "RemoveScopeMembers": {SERVICE},
        "ListScopeMembers": {SERVICE},
        "ListScopes": EITHER,
        "DisableUser": {SERVICE},
        "EnableUser": {SERVICE},
        "DeleteUser": {SERVICE},
        "SetUserTier": {SERVICE},
        "GetUserTier": {SERVICE},
    },
    "AuthService": {
        "CreateSession": {SERVICE},
        "RefreshSession": {PUBLIC},
        "CreateLinkToken": {SERVICE},
        "LinkIdentity": {PUBLIC},
        "RevokeSession": EITHER,
        "RevokeUser": {SERVICE},
        "ListSessions": EITHER,
        "InvalidateTokenCache": {SERVICE, ADMIN},
        "GetTokenCacheStats": {SERVICE},
    },
    "EventService": {
        "IngestEvent": {SERVICE},
        "GetEvent": {SERVICE},
        "ListEvents": {SERVICE},
        "RetryEvent": {SERVICE},
    },
    "OpsService": {"GetStatus": {SERVICE, ADMIN}, "GetSloReport": {SERVICE}, "ListAuditEntries": {ADMIN}},
}
STREAMS = {"WatchHints", "WatchDeliveries"}
ANSWERED_ONCE = {"PublishChanges", "SendNotification", "RedriveDeliveries", "CreateSession"}

FILES: tuple[FileDescriptor, ...] = (
    auth_service_pb2.DESCRIPTOR,
    core_pb2.DESCRIPTOR,
    directory_service_pb2.DESCRIPTOR,
    error_reason_pb2.DESCRIPTOR,
    event_service_pb2.DESCRIPTOR,
    ops_service_pb2.DESCRIPTOR,
    push_service_pb2.DESCRIPTOR,
    sync_service_pb2.DESCRIPTOR,
)
METHODS: tuple[MethodDescriptor, ...] = tuple(
    method for file in FILES for service in file.services_by_name.values() for method in service.methods
)
each_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)


def access(method: MethodDescriptor) -> set[str]:
    return set(access_of(method))


def fields_within(message: Descriptor, seen: set[str] | None = None) -> Iterator[FieldDescriptor]:
    """Every field that a request can carry, at any depth, without those of Google's own messages."""
    seen = set() if seen is None else seen
    if message.full_name in seen or not message.full_name.startswith("syncbeat.v1."):
        return
    seen.add(message.full_name)
    for field in message.fields:
        yield field
        if field.message_type is not None and not field.message_type.GetOptions().map_entry:
            yield from fields_within(field.message_type, seen)


def violations(request: Message) -> list[FieldViolation]:
    descriptor = request.DESCRIPTOR
    assert isinstance(descriptor, Descriptor)
    return list(compile_fast_validator(descriptor)(request))


def test_contract_checks_cover_every_proto() -> None:
    assert {file.name for file in FILES} == {f"syncbeat/v1/{path.name}" for path in PROTOS.glob("*.proto")}


def test_contract_generated_modules_import() -> None:
    assert v1.__doc__
    for file in FILES:
        name = "syncbeat.v1." + Path(file.name).stem
        assert importlib.import_module(f"{name}_pb2").DESCRIPTOR is file
        if file.services_by_name:
            grpc_module = importlib.import_module(f"{name}_pb2_grpc")
            assert all(hasattr(grpc_module, f"{service}Stub") for service in file.services_by_name)


def test_contract_services_and_access_match_the_table() -> None:
    told: dict[str, dict[str, set[str]]] = {}
    for method in METHODS:
        told.setdefault(method.containing_service.name, {})[method.name] = access(method)
    assert told == RPCS


@each_method
def test_contract_public_access_stands_alone(method: MethodDescriptor) -> None:
    assert access(method)
    assert PUBLIC not in access(method) or access(method) == {PUBLIC}


@each_method
def test_contract_request_and_response_messages_are_per_method(method: MethodDescriptor) -> None:
    assert method.input_type.full_name == f"syncbeat.v1.{method.name}Request"
    assert method.output_type.full_name == f"syncbeat.v1.{method.name}Response"
    assert method.client_streaming is False
    assert method.server_streaming is (method.name in STREAMS)


@each_method
def test_contract_requests_name_app_and_acting_user(method: MethodDescriptor) -> None:
    fields = method.input_type.fields_by_name
    if access(method) == {PUBLIC}:
        assert "app_id" not in fields
        return
    assert rules_of(fields["app_id"]).required is False
    if USER in access(method):
        assert rules_of(fields["user_id"]).required is False, "a user leaves it empty"


@each_method
def test_contract_request_id_is_on_idempotent_mutations_only(method: MethodDescriptor) -> None:
    once = method.name in ANSWERED_ONCE
    assert ("request_id" in method.input_type.fields_by_name) is once
    assert ("replayed" in method.output_type.fields_by_name) is once


@each_method
def test_contract_lists_have_pagination(method: MethodDescriptor) -> None:
    request, response = method.input_type.fields_by_name, method.output_type.fields_by_name
    if method.name == "ListChanges":  # goes on by its feed's cursor
        assert "cursor" in request
        assert "next_cursor" in response
    elif method.name.startswith("List"):
        assert rules_of(request["page_token"]).max_bytes == 2048
        assert "next_page_token" in response
    else:
        assert "page_size" not in request
        return
    size = rules_of(request["page_size"])
    assert (size.min_value, size.max_value) == (0, None)  # more than the most is taken as the most


@each_method
def test_contract_request_fields_are_bounded(method: MethodDescriptor) -> None:
    for field in fields_within(method.input_type):
        bounds = rules_of(field)
        if field.is_repeated:
            assert bounds.max_items is not None, field.full_name
            assert 0 < bounds.max_items <= (MAX_SCOPES if field.name == "cursors" else 1_000), field.full_name
        if field.cpp_type in (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64):
            assert bounds.min_value is not None, field.full_name
        if field.type == FieldDescriptor.TYPE_STRING:
            assert bounds.max_bytes is not None, field.full_name
            assert bounds.max_bytes <= 262_144, field.full_name
            assert field.name.endswith("_json") is bounds.json, field.full_name
            assert bounds.max_depth == (32 if bounds.json else 0), field.full_name


@each_method
def test_contract_ids_have_the_default_size(method: MethodDescriptor) -> None:
    for field in fields_within(method.input_type):
        if field.name in ("scope", "key", "ids") or field.name.endswith(("_id", "_ids")):
            assert field.message_type is not None or rules_of(field).max_bytes == 128, field.full_name


def change(**fields: object) -> core_pb2.NewChange:
    return core_pb2.NewChange(**{"scope": "s", "key": "k", "merge_patch_json": "{}", **fields})  # type: ignore[arg-type]  # fields of any type


def cursors(count: int) -> list[core_pb2.ScopeCursor]:
    return [core_pb2.ScopeCursor(scope=f"s{index}") for index in range(count)]


def sent(**fields: object) -> push_service_pb2.SendNotificationRequest:
    least: dict[str, object] = {"notification": core_pb2.Notification(title="t")}
    if not fields.keys() & {"user_ids", "device_ids", "scope"}:
        least["user_ids"] = core_pb2.UserIds(ids=["u"])
    return push_service_pb2.SendNotificationRequest(**{**least, **fields})  # type: ignore[arg-type]  # fields of any type


def published(*changes: core_pb2.NewChange) -> sync_service_pb2.PublishChangesRequest:
    return sync_service_pb2.PublishChangesRequest(changes=changes)


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


def beating(seconds: int, nanos: int = 0) -> sync_service_pb2.WatchHintsRequest:
    return sync_service_pb2.WatchHintsRequest(heartbeat_interval=Duration(seconds=seconds, nanos=nanos))


CAPS: list[tuple[str, Message, Message]] = [
    ("changes", published(*[change()] * 1000), published(*[change()] * 1001)),
    ("changes", published(change()), published()),
    ("changes[0].key", published(change(key="k" * 128)), published(change(key="k" * 129))),
    ("changes[0].scope", published(change()), published(change(scope=""))),
    (
        "changes[0].merge_patch_json",
        published(change(merge_patch_json=nested(32))),
        published(change(merge_patch_json=nested(33))),
    ),
    (
        "changes[0].merge_patch_json",
        published(change(merge_patch_json='"' + "x" * 262_142 + '"')),
        published(change(merge_patch_json='"' + "x" * 262_143 + '"')),
    ),
    ("heartbeat_interval", beating(300), beating(300, 1)),
    ("heartbeat_interval", beating(299, 999_999_999), beating(300, 999_999)),
    ("heartbeat_interval", beating(5), beating(4, 999_999_999)),
    ("heartbeat_interval", beating(5, 1), beating(0, -500_000_000)),
    (
        "cursors",
        sync_service_pb2.GetHintRequest(device_id="d", cursors=cursors(2000)),
        sync_service_pb2.GetHintRequest(device_id="d", cursors=cursors(2001)),
    ),
    (
        "user_ids.ids",
        sent(user_ids=core_pb2.UserIds(ids=["u"] * 1000)),
        sent(user_ids=core_pb2.UserIds(ids=["u"] * 1001)),
    ),
    (
        "device_ids.refs",
        sent(device_ids=core_pb2.DeviceRefs(refs=[core_pb2.DeviceRef(user_id="u", device_id="d")] * 1000)),
        sent(device_ids=core_pb2.DeviceRefs(refs=[core_pb2.DeviceRef(user_id="u", device_id="d")] * 1001)),
    ),
    (
        "notification.title",
        sent(notification=core_pb2.Notification(title="é" * 512)),
        sent(notification=core_pb2.Notification(title="é" * 513)),
    ),
    (
        "notification.data",
        sent(notification=core_pb2.Notification(data={str(index): "" for index in range(64)})),
        sent(notification=core_pb2.Notification(data={str(index): "" for index in range(65)})),
    ),
    (
        "members",
        directory_service_pb2.AddScopeMembersRequest(
            scope="s",
            members=[directory_service_pb2.ScopeMember(user_id="u", role=directory_service_pb2.ROLE_READER)] * 1000,
        ),
        directory_service_pb2.AddScopeMembersRequest(
            scope="s",
            members=[directory_service_pb2.ScopeMember(user_id="u", role=directory_service_pb2.ROLE_READER)] * 1001,
        ),
    ),
    (
        "page_size",
        directory_service_pb2.ListDevicesRequest(page_size=1000),
        directory_service_pb2.ListDevicesRequest(page_size=-1),
    ),
    (
        "platform",
        directory_service_pb2.RegisterDeviceRequest(device_id="d", platform=directory_service_pb2.PLATFORM_IOS),
        directory_service_pb2.RegisterDeviceRequest(device_id="d"),
    ),
    (
        "kind",
        push_service_pb2.AcknowledgeDeliveryRequest(
            ack_token="t" * 2048, kind=push_service_pb2.ACKNOWLEDGE_KIND_OPENED
        ),
        push_service_pb2.AcknowledgeDeliveryRequest(ack_token="t"),
    ),
]


@pytest.mark.parametrize(("path", "allowed", "refused"), CAPS, ids=[path for path, _, _ in CAPS])
def test_contract_size_caps_hold_exactly(path: str, allowed: Message, refused: Message) -> None:
    assert violations(allowed) == []
    assert [violation.path for violation in violations(refused)] == [path]


def names(enum: EnumDescriptor) -> set[str]:
    prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", enum.name).upper() + "_"
    return {name.removeprefix(prefix) for name in enum.values_by_name} - {"UNSPECIFIED"}


@pytest.mark.parametrize(
    ("enum", "model"),
    [
        (sync_service_pb2.Priority.DESCRIPTOR, sync.Priority),
        (sync_service_pb2.ActivityState.DESCRIPTOR, sync.ActivityState),
        (sync_service_pb2.Network.DESCRIPTOR, sync.Network),
        (push_service_pb2.DeliveryState.DESCRIPTOR, push.DeliveryState),
        (push_service_pb2.DeliveryReason.DESCRIPTOR, push.Reason),
        (push_service_pb2.NotificationKind.DESCRIPTOR, push.Kind),
        (directory_service_pb2.Platform.DESCRIPTOR, directory.Platform),
        (directory_service_pb2.TokenState.DESCRIPTOR, directory.TokenState),
        (directory_service_pb2.Role.DESCRIPTOR, directory.MemberRole),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else value.name,
)
def test_contract_enums_match_the_domain(enum: EnumDescriptor, model: type[StrEnum]) -> None:
    # What the domain calls unknown or none is UNSPECIFIED on the wire.
    assert names(enum) | {"UNKNOWN", "NONE"} == {member.name for member in model} | {"UNKNOWN", "NONE"}


def test_contract_push_priorities_match_the_lanes() -> None:
    assert names(core_pb2.PushPriority.DESCRIPTOR) == {lane.name for lane in push.Lane}


def test_contract_lists_every_error_reason() -> None:
    assert {reason.value for reason in errors.Reason} <= names(error_reason_pb2.ErrorReason.DESCRIPTOR)


def test_contract_lists_every_field_reason() -> None:
    assert {reason.value for reason in errors.FieldReason} == names(error_reason_pb2.FieldReason.DESCRIPTOR)


COMMENTED = re.compile(
    r"(?P<comment>(?:^ *//.*\n)+) *(?:(?:service|message|enum|rpc|oneof) |(?:[\w.<>, ]+ )?)(?P<name>\w+)(?= ?[({=])",
    re.MULTILINE,
)


@pytest.mark.parametrize("path", sorted(PROTOS.glob("*.proto")), ids=lambda path: path.stem)
def test_contract_comments_start_with_their_subject(path: Path) -> None:
    # That every element has a comment is what `buf lint` sees to.
    found = [match for match in COMMENTED.finditer(path.read_text(encoding="utf-8")) if match["name"] != "syntax"]
    assert len(found) > 5
    assert [m["name"] for m in found if not re.match(rf" *// {m['name']}\b", m["comment"])] == []
