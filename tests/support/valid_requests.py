"""Requests that the contract's own rules call good, made for any method."""

from __future__ import annotations

from typing import cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from syncbeat.v1 import field_rules_pb2


def rules(field: FieldDescriptor) -> field_rules_pb2.FieldRules:
    """Return what the contract lets into a field."""
    found: field_rules_pb2.FieldRules = field.GetOptions().Extensions[field_rules_pb2.rules]
    return found


def needed(field: FieldDescriptor) -> bool:
    """Return whether a service's request must have it."""
    return rules(field).required or rules(field).acting_user


def one_required(field: FieldDescriptor) -> bool:
    """Return whether it is a field of a oneof that must have one."""
    oneof = field.containing_oneof
    return oneof is not None and oneof.GetOptions().Extensions[field_rules_pb2.one_required]


def is_map(field: FieldDescriptor) -> bool:
    """Return whether it is a map."""
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def inner(field: FieldDescriptor) -> Descriptor | None:
    """The message of the contract that a field holds."""
    kind = field.message_type
    return kind if kind is not None and kind.full_name.startswith("syncbeat.v1.") and not is_map(field) else None


def fill(message: Message) -> Message:
    """Set whatever is required, and no more: the patch of a change that deletes nothing."""
    for field in cast(Descriptor, message.DESCRIPTOR).fields:
        value = getattr(message, field.name)
        if rules(field).json:
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
            value.FromMilliseconds(rules(field).min_millis)
        else:
            setattr(message, field.name, "x" if field.type == FieldDescriptor.TYPE_STRING else 1)
    return message


def request_of(method: MethodDescriptor) -> Message:
    """The least that a method can be asked."""
    return fill(GetMessageClass(method.input_type)())
