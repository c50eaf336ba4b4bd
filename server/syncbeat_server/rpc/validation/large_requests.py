"""Requests that are too large to be checked while others wait: which they are, and their check elsewhere."""

from __future__ import annotations

import functools
import importlib

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from syncbeat.v1 import field_rules_pb2
from syncbeat_server.errors import FieldViolation
from syncbeat_server.rpc.validation.field_rules import Validator, compile_validator
from syncbeat_server.runtime.worker_processes import RunInWorker

LARGE_BYTES = 16_384
"""A request with documents that has more is checked in a process of its own: the worst of this size takes a
millisecond, of 256 KiB a few hundredths of a second."""


def holds_documents(message: Descriptor) -> bool:
    """Tell if a message type has JSON documents of its caller in it, at any depth."""
    return _holds_documents(message, set())


def _holds_documents(message: Descriptor, seen: set[str]) -> bool:
    if message.full_name in seen:
        return False
    seen.add(message.full_name)
    return any(
        field.GetOptions().Extensions[field_rules_pb2.rules].json
        or (field.message_type is not None and _holds_documents(field.message_type, seen))
        for field in message.fields
    )


async def faults_aside(aside: RunInWorker, kind: type[Message], data: bytes) -> list[FieldViolation]:
    """Everything that is wrong with a request, by its bytes, which are a message of this kind.

    Raises:
        Overloaded, DependencyDown: it could not be looked at.
    """
    found = await aside(faults_of, kind.__module__, kind.__name__, data.decode("latin-1"))
    return [FieldViolation(path, description) for path, description in found]


def faults_of(module: str, name: str, data: str) -> list[tuple[str, str]]:
    """Find the faults for `faults_aside`, in the child. A character of `data` is a byte, so that JSON can carry it."""
    kind, validate = _validator(module, name)
    return [(fault.path, fault.description) for fault in validate(kind.FromString(data.encode("latin-1")))]


@functools.cache
def _validator(module: str, name: str) -> tuple[type[Message], Validator]:
    kind: type[Message] = getattr(importlib.import_module(module), name)
    descriptor = kind.DESCRIPTOR
    if not isinstance(descriptor, Descriptor):
        raise TypeError("a message type has a descriptor")
    return kind, compile_validator(descriptor)
