"""Requests that the contract's own rules call good, made for any method."""

from __future__ import annotations

from typing import cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from syncbeat_server.rpc.contract.options import is_required, message_in, rules_of


def needed(field: FieldDescriptor) -> bool:
    """Return whether a service's request must have it."""
    return rules_of(field).required or rules_of(field).acting_user


def one_required(field: FieldDescriptor) -> bool:
    """Return whether it is a field of a oneof that must have one."""
    oneof = field.containing_oneof
    return oneof is not None and is_required(oneof)


def is_map(field: FieldDescriptor) -> bool:
    """Return whether it is a map."""
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def inner(field: FieldDescriptor) -> Descriptor | None:
    """The message of the contract that a field holds."""
    return message_in(field)


def fill(message: Message) -> Message:
    """Set whatever is required, and no more: the patch of a change that deletes nothing."""
    for field in cast(Descriptor, message.DESCRIPTOR).fields:
        value = getattr(message, field.name)
        if rules_of(field).json:
            setattr(message, field.name, "1")
        oneof = field.containing_oneof
        chosen = one_required(field) and oneof is not None and field.index == oneof.fields[0].index
        if not (chosen or (needed(field) and not one_required(field))):
            continue
        if inner(field) is not None:
            if field.is_repeated:
                fill(value.add())
            else:
                value.SetInParent()
                fill(value)
        elif field.is_repeated:
            value.append("x")
        elif field.message_type is not None:
            value.FromMilliseconds(rules_of(field).min_millis or 0)
        else:
            setattr(message, field.name, "x" if field.type == FieldDescriptor.TYPE_STRING else 1)
    return message


def request_of(method: MethodDescriptor) -> Message:
    """The least that a method can be asked."""
    return fill(GetMessageClass(method.input_type)())
