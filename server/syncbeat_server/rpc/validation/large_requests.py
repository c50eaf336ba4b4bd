"""Validates large requests with JSON documents in a child process, so that no other call waits for them."""

from __future__ import annotations

import functools
import importlib

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from syncbeat_server.errors import FieldReason, FieldViolation
from syncbeat_server.rpc.contract.options import message_in, rules_of
from syncbeat_server.rpc.validation.message_validator import Validator, compile_validator
from syncbeat_server.runtime.concurrency_limit import ConcurrencyLimit
from syncbeat_server.runtime.worker_processes import RunInWorker

LARGE_BYTES = 16_384
"""A request with documents that has more bytes is validated in a child process: the worst of this size takes a
millisecond, of 256 KiB a few hundredths of a second."""

_MAX_CONCURRENT_PER_CALLER = 1  # so that one caller's large documents leave a child process to those of others


class LargeRequestValidator:
    """Validates large requests in child processes, one of each caller at a time."""

    def __init__(self, run_in_child: RunInWorker) -> None:
        self._run_in_child = run_in_child
        self._slots = ConcurrencyLimit[tuple[str, str]](_MAX_CONCURRENT_PER_CALLER)

    async def violations(self, caller: tuple[str, str], kind: type[Message], data: bytes) -> list[FieldViolation]:
        """Return every violation of a request, given as the bytes of a message of this type.

        `caller` is the pair of app and name whose requests take turns.

        Raises:
            Overloaded, DependencyDown: it could not be validated.
        """
        async with self._slots.slot(caller):
            found = await self._run_in_child(validate_in_child, kind.__module__, kind.__name__, data.decode("latin-1"))
        return [FieldViolation(path, description, FieldReason(reason)) for path, description, reason in found]


def holds_documents(message: Descriptor) -> bool:
    """Tell if a message type has JSON documents of its caller in it, at any depth."""
    return _holds_documents(message, set())


def validate_in_child(module: str, name: str, data: str) -> list[tuple[str, str, str]]:
    """Return path, description and reason of each violation, in the child process.

    Each character of `data` stands for one byte, since the arguments travel as JSON.
    """
    kind, validate = _validator(module, name)
    return [
        (fault.path, fault.description, fault.reason) for fault in validate(kind.FromString(data.encode("latin-1")))
    ]


def _holds_documents(message: Descriptor, seen: set[str]) -> bool:
    if message.full_name in seen:
        return False
    seen.add(message.full_name)
    return any(
        rules_of(field).json or ((inner := message_in(field)) is not None and _holds_documents(inner, seen))
        for field in message.fields
    )


@functools.cache
def _validator(module: str, name: str) -> tuple[type[Message], Validator]:
    kind: type[Message] = getattr(importlib.import_module(module), name)
    descriptor = kind.DESCRIPTOR
    if not isinstance(descriptor, Descriptor):
        raise TypeError("a message type has a descriptor")
    return kind, compile_validator(descriptor)
