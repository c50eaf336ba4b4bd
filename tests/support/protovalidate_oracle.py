"""Compares the compiled checks with protovalidate, which evaluates the same rules, on random messages."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import protovalidate
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message

from syncbeat_server.errors import FieldReason, FieldViolation
from syncbeat_server.rpc.contract.options import CONTRACT_FILE, rules_of
from syncbeat_server.rpc.fastpath.compiled_validator import compile_fast_validator
from syncbeat_server.rpc.server import CONTRACT
from syncbeat_server.rpc.validation.message_validator import Validator
from tests.support.contract_messages import random_message
from tests.support.valid_requests import inner

REQUESTS = [method.input_type.full_name for service in CONTRACT for method in service.methods]


def _contract_pool() -> DescriptorPool:
    """The contract with its options: the generated classes have none for protovalidate to read."""
    pool = DescriptorPool()
    for file in FileDescriptorSet.FromString(CONTRACT_FILE.read_bytes()).file:
        pool.AddSerializedFile(file.SerializeToString())
    return pool


POOL = _contract_pool()


def _is_time(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.name in ("Duration", "Timestamp")


STRICTER: dict[str, Callable[[FieldDescriptor, FieldViolation], bool]] = {
    "a time or span whose seconds or nanos are out of range or of different signs: protovalidate reads it as another": (
        lambda field, fault: _is_time(field) and fault.reason is FieldReason.MALFORMED
    ),
    "a JSON document: CEL has no parser for it": lambda field, fault: rules_of(field).json,
}
"""Refusals of the server beyond the rules, each with the reason why no rule says so. docs/contract.md has the same."""


def _field_at(kind: Descriptor, path: str) -> FieldDescriptor:
    """The field at the end of a path; of a map or a list it is that."""
    first, _, rest = path.partition(".")
    if first not in kind.oneofs_by_name:
        field = kind.fields_by_name[first.partition("[")[0]]
        nested = inner(field)
        if rest and nested is not None:
            return _field_at(nested, rest)
        return field
    return kind.oneofs_by_name[first].fields[0]


def explained(kind: Descriptor, fault: FieldViolation) -> bool:
    """Tell if the list has this fault."""
    field = _field_at(kind, fault.path)
    return any(stricter(field, fault) for stricter in STRICTER.values())


def _named(violation: Any) -> str:
    """The field that protovalidate names, without keys and indexes."""
    return ".".join(str(element.field_name) for element in violation.proto.field.elements)


def without_subscripts(path: str) -> str:
    """Return a path without the indexes and keys in it."""
    text, depth = "", 0
    for letter in path:
        depth += (letter == "[") - (letter == "]")
        text += letter if not depth and letter != "]" else ""
    return text


@functools.cache
def validator(kind: Descriptor) -> Validator:
    """Return the server's validator of a message type."""
    return compile_fast_validator(kind)


def differences(kind: Descriptor, message: Message) -> tuple[set[str], set[str]]:
    """The fields that only protovalidate refuses, and those that only the server refuses, without those of the list.

    Of a list that is too long the server looks at no item, so that items may be refused by protovalidate alone: these
    count as that list.
    """
    faults = list(validator(kind)(message))
    ours = {without_subscripts(fault.path) for fault in faults}
    overfull = {without_subscripts(fault.path) for fault in faults if fault.reason is FieldReason.TOO_MANY}
    theirs = {_named(one) for one in protovalidate.collect_violations(message)}
    theirs = {next((whole for whole in overfull if one.startswith(f"{whole}.")), one) for one in theirs}
    allowed = {without_subscripts(fault.path) for fault in faults if explained(kind, fault)}
    return theirs - ours, ours - theirs - allowed


def messages(name: str, count: int, seed: int) -> Iterator[Message]:
    """Yield random messages of a type, the same for each seed."""
    random = Random(f"{name} {seed}")
    kind = POOL.FindMessageTypeByName(name)
    for _ in range(count):
        yield random_message(kind, random)
