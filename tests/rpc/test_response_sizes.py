"""Tests that every response fits a client with gRPC's default limit."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from syncbeat.v1 import core_pb2, sync_service_pb2
from syncbeat_server.audit.policy.details import MAX_OCTETS
from syncbeat_server.directory.model import MAX_SCOPES
from syncbeat_server.events.policy.retries import MAX_FAILURE_CHARACTERS
from syncbeat_server.events.store.event_rows import MAX_PAGE_OCTETS
from syncbeat_server.rpc.server import CONTRACT
from syncbeat_server.rpc.validation.compression import MAX_REQUEST_BYTES
from syncbeat_server.status.model import MOST_BREAKERS, MOST_CACHES, MOST_METHODS, Objective
from syncbeat_server.status.process_board import MOST_PROCESSES
from syncbeat_server.status.slo_report import MOST_FIGURES
from syncbeat_server.sync.feed.fair_sharing import PAGE_OCTETS
from syncbeat_server.sync.store.changes import ROW_OCTETS
from syncbeat_server.sync.streams.firehose_stream import MAX_CHECKPOINT_CURSORS

pytestmark = pytest.mark.unit

GRPC_DEFAULT = 4 << 20
NAME = "é" * 64  # an id of 128 octets
PAGE = 1_000
MOST: dict[str, int] = {
    "syncbeat.v1.Hint.heads": 2 * MAX_SCOPES,  # those that changed last, and those that were named
    "syncbeat.v1.Checkpoint.cursors": max(2 * MAX_SCOPES, MAX_CHECKPOINT_CURSORS),  # of a user, and of all scopes
    "syncbeat.v1.ListChangesResponse.changes": 1,  # `test_page_sizes` is about these
    "syncbeat.v1.Preferences.muted_types": 100,
    "syncbeat.v1.GetStatusResponse.processes": MOST_PROCESSES,
    "syncbeat.v1.GetStatusResponse.slos": len(Objective),
    "syncbeat.v1.GetSloReportResponse.objectives": len(Objective),
    "syncbeat.v1.GetSloReportResponse.triggers": 50 + MOST_FIGURES,  # some thirty of ours
    "syncbeat.v1.Notification.data": 64,
    "syncbeat.v1.Notification.variables": 64,
    "syncbeat.v1.PoolStatus.server_connections": 10,  # PostgreSQL has seven states
}
for status in ("GetStatusResponse", "ProcessStatus"):
    MOST[f"syncbeat.v1.{status}.rpcs"] = MOST_METHODS
    MOST[f"syncbeat.v1.{status}.breakers"] = MOST_BREAKERS
    MOST[f"syncbeat.v1.{status}.caches"] = MOST_CACHES
"""The number of elements of a repeated field of an answer, where that is not a page."""
LONGEST: dict[str, int] = {
    "syncbeat.v1.Change.value_json": PAGE_OCTETS,
    "syncbeat.v1.Hint.explanation": 1_000,
    "syncbeat.v1.Notification.title": 1_024,
    "syncbeat.v1.Notification.body": 4_096,
    "syncbeat.v1.Notification.image_url": 2_048,
    "syncbeat.v1.Notification.click_action": 2_048,
    "syncbeat.v1.Event.payload_json": MAX_PAGE_OCTETS // PAGE,  # of a page: together they have no more
    "syncbeat.v1.Event.failure": 2 * MAX_FAILURE_CHARACTERS,
    "syncbeat.v1.AuditEntry.actor": 256,
    "syncbeat.v1.AuditEntry.subject": 320,
    "syncbeat.v1.AuditEntry.request_id": 128,
    "syncbeat.v1.AuditEntry.details_json": MAX_OCTETS,
    "syncbeat.v1.Receipt.failure": 2 * MAX_FAILURE_CHARACTERS,
}
"""The octets of a text that is no id."""
METHODS = [method for service in CONTRACT for method in service.methods]


def largest(kind: Any) -> Message:
    """A message with as much in it as it may hold."""
    message: Message = GetMessageClass(kind)()
    for field in kind.fields:
        value = _largest_value(field)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            value = _largest_value(field.message_type.fields_by_name["value"])
            value = "x" * 2_048 if isinstance(value, str) else value
            getattr(message, field.name).update({f"{n:03}" * 42: value for n in range(MOST[field.full_name])})
        elif field.is_repeated:
            getattr(message, field.name).extend([value] * MOST.get(field.full_name, PAGE))
        elif field.message_type is not None:
            getattr(message, field.name).CopyFrom(value)
        elif field.containing_oneof is None or field.containing_oneof.fields[0] is field:
            setattr(message, field.name, value)
    return message


def _largest_value(field: FieldDescriptor) -> Any:
    if field.message_type is not None:
        return largest(field.message_type)
    if field.type == FieldDescriptor.TYPE_STRING:
        return "x" * LONGEST[field.full_name] if field.full_name in LONGEST else NAME
    if field.type == FieldDescriptor.TYPE_ENUM:
        return 2**31 - 1  # above all: so that its number is as long as one may be
    return {
        FieldDescriptor.CPPTYPE_BOOL: True,
        FieldDescriptor.CPPTYPE_DOUBLE: 0.5,
        FieldDescriptor.CPPTYPE_INT32: 2**31 - 1,
        FieldDescriptor.CPPTYPE_INT64: 2**63 - 1,
    }[field.cpp_type]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_response_size_fits_the_default_message_limit(method: MethodDescriptor) -> None:
    assert 0 <= largest(method.output_type).ByteSize() <= GRPC_DEFAULT


@pytest.mark.parametrize(
    "method", [m for m in METHODS if "cursors" in m.input_type.fields_by_name], ids=lambda m: m.name
)
def test_request_size_with_all_cursors_fits_the_server(method: MethodDescriptor) -> None:
    request: Any = GetMessageClass(method.input_type)()
    cursor = largest(method.input_type.fields_by_name["cursors"].message_type)
    request.cursors.extend([cursor] * MAX_SCOPES)
    assert request.ByteSize() <= MAX_REQUEST_BYTES


def test_row_overhead_covers_everything_beside_the_value() -> None:
    beside = sync_service_pb2.Change(scope=NAME, key=NAME, epoch="e" * 32, deleted=True, sequence=2**63 - 1)
    beside.change_time.FromJsonString("2100-01-01T00:00:00.999999999Z")
    lengths = 2 * 5  # of the value, and of the change in its answer
    assert beside.ByteSize() + lengths <= ROW_OCTETS


def test_checkpoint_size_of_all_scopes_is_below_a_mebibyte() -> None:
    epoch = f"{'e' * 32}~{2**63 - 1}"  # as `sync/feed/resumable_cursors.py` makes the longest
    cursor = core_pb2.ScopeCursor(scope=NAME, epoch=epoch, sequence=2**63 - 1)
    checkpoint = sync_service_pb2.Checkpoint(cursors=[cursor] * MAX_CHECKPOINT_CURSORS)
    checkpoint.token_remaining.FromSeconds(2**31)
    assert checkpoint.ByteSize() + 1_000 <= 1 << 20  # the hint has no heads
