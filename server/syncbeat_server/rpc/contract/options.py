"""Reads access and field rules from `contract.binpb`, the compiled protos with their options.

The code that clients generate comes from the same protos without options, which may therefore meet options of other
programs under any number. Here the options live in a descriptor pool of their own.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor, OneofDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from syncbeat_server.errors import ConfigurationError
from syncbeat_server.rpc.contract.field_rules import FieldRules, RuleExtensions, read_rules

CONTRACT_FILE = Path(__file__).with_name("contract.binpb")
PACKAGE = "syncbeat.v1"


@dataclass(frozen=True)
class ContractOptions:
    """The options of the contract, by the full names of what has them."""

    access: Mapping[str, tuple[str, ...]]
    """The kinds of caller of each method: `USER`, `SERVICE`; empty for a method without the option."""
    rules: Mapping[str, FieldRules]
    required_oneofs: frozenset[str]


@functools.cache
def contract_options() -> ContractOptions:
    """Return the options of the contract that this server was built with.

    Raises:
        ConfigurationError: they cannot be read.
    """
    try:
        return read_options(CONTRACT_FILE.read_bytes())
    except (OSError, DecodeError, KeyError, TypeError) as error:
        fault = "cannot be read, and nobody could say who may call what"
        raise ConfigurationError(f"{CONTRACT_FILE} {fault}. Fix: install the server anew, or `make gen`") from error


def access_of(method: MethodDescriptor) -> tuple[str, ...]:
    """Return the kinds of caller that a method of the contract lets in; empty if it does not say."""
    return contract_options().access.get(method.full_name, ())


def rules_of(field: FieldDescriptor) -> FieldRules:
    """Return the rules of a field of the contract.

    Raises:
        ConfigurationError: the descriptor set is older than the generated code and does not know the field.
    """
    rules = contract_options().rules.get(field.full_name)
    if rules is None:
        raise ConfigurationError(f"{CONTRACT_FILE} does not have {field.full_name}. Fix: `make gen`")
    return rules


def is_required(oneof: OneofDescriptor) -> bool:
    """Tell if a message must have a field of this oneof."""
    return oneof.full_name in contract_options().required_oneofs


def message_in(field: FieldDescriptor) -> Descriptor | None:
    """Return the message type of the contract that a field holds; None for others, as of times and maps."""
    kind = field.message_type
    if kind is None or kind.file.package != PACKAGE or kind.GetOptions().map_entry:
        return None
    return kind


def read_options(serialized: bytes) -> ContractOptions:
    """Return the options in a serialized `FileDescriptorSet`, which has the files that it imports."""
    pool = DescriptorPool()
    for imported in FileDescriptorSet.FromString(serialized).file:
        pool.AddSerializedFile(imported.SerializeToString())
    # A class of that pool knows the extensions in it.
    kind = GetMessageClass(pool.FindMessageTypeByName(FileDescriptorSet.DESCRIPTOR.full_name))
    parsed: Any = kind.FromString(serialized)
    files = [file for file in parsed.file if file.package == PACKAGE]
    messages = [(f"{PACKAGE}.{message.name}", message) for file in files for message in file.message_type]
    of_oneof = pool.FindExtensionByName("buf.validate.oneof")
    return ContractOptions(
        access=dict(_access(files, pool)),
        rules=dict(_rules(messages, pool)),
        required_oneofs=frozenset(
            f"{name}.{oneof.name}"
            for name, message in messages
            for oneof in message.oneof_decl
            if oneof.options.Extensions[of_oneof].required
        ),
    )


def _access(files: list[Any], pool: DescriptorPool) -> Iterator[tuple[str, tuple[str, ...]]]:
    option = pool.FindExtensionByName(f"{PACKAGE}.access")
    kinds = pool.FindEnumTypeByName(f"{PACKAGE}.Access").values_by_number
    for file in files:
        for service in file.service:
            for method in service.method:
                numbers = method.options.Extensions[option]
                names = tuple(kinds[number].name.removeprefix("ACCESS_") for number in numbers)
                yield f"{PACKAGE}.{service.name}.{method.name}", names


def _rules(messages: list[tuple[str, Any]], pool: DescriptorPool) -> Iterator[tuple[str, FieldRules]]:
    extensions = RuleExtensions(
        field=pool.FindExtensionByName("buf.validate.field"),
        json=pool.FindExtensionByName(f"{PACKAGE}.json"),
        acting_user=pool.FindExtensionByName(f"{PACKAGE}.acting_user"),
    )
    for name, message in messages:
        for field in message.field:
            yield f"{name}.{field.name}", read_rules(field.options, extensions)
