"""Compiles the field rules of the contract (`field_rules.proto`) into one validator for each message type.

A validator finds every violation, so that a caller learns all of them at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import orjson
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from syncbeat_server.errors import ConfigurationError, FieldReason, FieldViolation
from syncbeat_server.rpc.contract.field_rules import FieldRules
from syncbeat_server.rpc.contract.options import is_required, rules_of
from syncbeat_server.rpc.validation.value_checks import (
    REQUIRED,
    accept,
    duration_check,
    enum_check,
    number_check,
    string_check,
    text_check,
    timestamp_check,
)

Violations = Sequence[FieldViolation]
Validator = Callable[[Any], Violations]
# Returns the fault of a value, or the violations of a message by their paths within it. Whole paths are joined only for
# what is at fault.
_Check = Callable[[Any], FieldViolation | Violations | None]
NO_VIOLATIONS: Violations = ()

_DURATION = "google.protobuf.Duration"
_TIMESTAMP = "google.protobuf.Timestamp"


class FieldCheck(NamedTuple):
    """One check of a message, and the field it is about; None: a oneof."""

    field: FieldDescriptor | None
    check: Validator


Combine = Callable[[Sequence[FieldCheck]], Validator]
"""Makes one validator of all checks of a message type, in their order."""


def check_all(checks: Sequence[FieldCheck]) -> Validator:
    """Combine checks by running every one."""
    all_checks = [check for _, check in checks]

    def validate(message: Message) -> Violations:
        found = NO_VIOLATIONS
        for check in all_checks:
            violations = check(message)
            if violations:
                found = [*found, *violations]
        return found

    return validate


def compile_validator(message: Descriptor, combine: Combine = check_all) -> Validator:
    """Return the validator of a message type, which returns every violation of a message of it."""
    return _Compiler(combine).validator(message)


def acting_user_field(message: Descriptor) -> str:
    """Return the name of the field for the user a service acts for; empty when the message has none."""
    named = (field.name for field in message.fields if rules_of(field).acting_user)
    return next(named, "")


class _Compiler:
    """Compiles message types, each once, however often a message type nests it."""

    def __init__(self, combine: Combine) -> None:
        self._combine = combine
        self._made: dict[str, Validator] = {}
        self._in_progress: set[str] = set()

    def validator(self, message: Descriptor) -> Validator:
        """Return the validator of a message type."""
        name = message.full_name
        if name in self._in_progress:
            return self._late(name)
        if name not in self._made:
            self._in_progress.add(name)
            checks = [FieldCheck(field, self._field_check(field)) for field in message.fields]
            checks += [FieldCheck(None, _oneof_check(oneof.name)) for oneof in message.oneofs if is_required(oneof)]
            self._made[name] = self._combine(checks)
            self._in_progress.remove(name)
        return self._made[name]

    def _late(self, name: str) -> Validator:
        # For a message type within itself, whose validator is not there yet.
        def validate(message: Message) -> Violations:
            return self._made[name](message)

        return validate

    def _field_check(self, field: FieldDescriptor) -> Validator:
        rules = rules_of(field)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            return _map_check(field, rules)
        check = self._value_check(field, rules)
        if field.is_repeated:
            return _repeated_check(field, rules, check)
        if field.has_presence:
            return _presence_check(field, rules, check)
        return _plain_check(field, rules, check)

    def _value_check(self, field: FieldDescriptor, rules: FieldRules) -> _Check:
        match field.cpp_type:
            case FieldDescriptor.CPPTYPE_MESSAGE if field.message_type is not None:
                return self._message_check(field.message_type, rules)
            case FieldDescriptor.CPPTYPE_ENUM if field.enum_type is not None:
                return enum_check(field.enum_type)
            case FieldDescriptor.CPPTYPE_STRING if field.type == FieldDescriptor.TYPE_STRING:
                return text_check(rules)
            case FieldDescriptor.CPPTYPE_BOOL:
                return accept
            case FieldDescriptor.CPPTYPE_INT32 | FieldDescriptor.CPPTYPE_INT64:
                return number_check(rules)
            case _:
                raise ConfigurationError(f"{field.full_name} is of a type that this server does not validate")

    def _message_check(self, message: Descriptor, rules: FieldRules) -> _Check:
        if message.full_name == _DURATION:
            return duration_check(rules)
        if message.full_name == _TIMESTAMP:
            return timestamp_check
        return self.validator(message)


def _at(path: str, fault: FieldViolation | Violations) -> Violations:
    if isinstance(fault, FieldViolation):
        return (fault._replace(path=path),)
    return [inner._replace(path=f"{path}.{inner.path}") for inner in fault]


def _oneof_check(name: str) -> Validator:
    missing = _at(name, REQUIRED)

    def check(message: Message) -> Violations:
        return missing if message.WhichOneof(name) is None else NO_VIOLATIONS

    return check


def _presence_check(field: FieldDescriptor, rules: FieldRules, value_check: _Check) -> Validator:
    name, not_empty = field.name, rules.required or rules.not_empty
    absent = _at(name, REQUIRED) if rules.required else NO_VIOLATIONS

    def check(message: Message) -> Violations:
        if not message.HasField(name):
            return absent
        value = getattr(message, name)
        fault = REQUIRED if not_empty and not value else value_check(value)
        return _at(name, fault) if fault else NO_VIOLATIONS

    return check


def _plain_check(field: FieldDescriptor, rules: FieldRules, value_check: _Check) -> Validator:
    # Without presence the default value is the same as none.
    name = field.name
    absent = _at(name, REQUIRED) if rules.required else NO_VIOLATIONS

    def check(message: Message) -> Violations:
        value = getattr(message, name)
        if not value:
            return absent
        fault = value_check(value)
        return _at(name, fault) if fault else NO_VIOLATIONS

    return check


def _max_items_of(field: FieldDescriptor, rules: FieldRules) -> int:
    if rules.max_items is None:
        raise ConfigurationError(f"{field.full_name} has no bound of its items in the contract")
    return rules.max_items


def _repeated_check(field: FieldDescriptor, rules: FieldRules, value_check: _Check) -> Validator:
    name, max_items = field.name, _max_items_of(field, rules)
    absent = _at(name, REQUIRED) if rules.required else NO_VIOLATIONS
    too_many = (FieldViolation(name, f"at most {max_items} items", FieldReason.TOO_MANY),)

    def check(message: Message) -> Violations:
        values = getattr(message, name)
        if not values:
            return absent
        if len(values) > max_items:
            return too_many
        found = NO_VIOLATIONS
        for index, value in enumerate(values):
            fault = value_check(value)
            if fault:
                found = [*found, *_at(f"{name}[{index}]", fault)]
        return found

    return check


def _map_check(field: FieldDescriptor, rules: FieldRules) -> Validator:
    name, max_items = field.name, _max_items_of(field, rules)
    key_check = string_check(rules.max_key_bytes, multiline=False, not_empty=True)
    value_check = text_check(rules)
    too_many = (FieldViolation(name, f"at most {max_items} entries", FieldReason.TOO_MANY),)

    def check(message: Message) -> Violations:
        entries = getattr(message, name)
        if len(entries) > max_items:
            return too_many
        found = NO_VIOLATIONS
        for key, value in entries.items():
            for fault in (key_check(key), value_check(value)):
                if fault:
                    found = [*found, *_at(f"{name}[{orjson.dumps(key[:32]).decode()}]", fault)]
        return found

    return check
