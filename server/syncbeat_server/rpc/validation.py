"""Field rules of the contract (`field_rules.proto`), compiled once for each message type into a list of checks.

A check adds every violation it finds, so that a caller learns all of them at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import orjson
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from syncbeat.v1 import field_rules_pb2
from syncbeat_server.errors import FieldViolation

Violations = list[FieldViolation]
Validator = Callable[[Any, str, Violations], None]
_Check = Callable[[Any, str, Violations], None]

_DEFAULT_MAX_BYTES = 128
_MAX_SPAN_MS = 366 * 86_400_000
_DURATION = "google.protobuf.Duration"
_TIMESTAMP = "google.protobuf.Timestamp"
_MIN_TIMESTAMP_S = -62_135_596_800  # 0001-01-01, from the comments of timestamp.proto
_MAX_TIMESTAMP_S = 253_402_300_799  # 9999-12-31
_MAX_FIELDS_LOOKED_AT = 10_000
_NUL_ESCAPE = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
_CONTROL = dict.fromkeys((*range(32), 127))
_CONTROL_BUT_LINES = {code: None for code in _CONTROL if chr(code) not in "\n\r\t"}


def compile_validator(message: Descriptor) -> Validator:
    """The validator of a message type: `validator(message, path, violations)`."""
    return _compile(message, {})


def _compile(message: Descriptor, made: dict[str, list[tuple[str, _Check]]]) -> Validator:
    checks = made.get(message.full_name)
    if checks is None:
        checks = made[message.full_name] = []
        checks.extend((field.name, _field_check(field, made)) for field in message.fields)
        checks.extend(
            (oneof.name, _oneof_check(oneof.name))
            for oneof in message.oneofs
            if oneof.GetOptions().Extensions[field_rules_pb2.one_required]
        )

    def validate(value: Message, path: str, violations: Violations) -> None:
        for name, check in checks:
            check(value, f"{path}.{name}" if path else name, violations)

    return validate


def acting_user_field(message: Descriptor) -> str:
    """The field that names the user for whom a service calls; empty when the message has none."""
    named = (f.name for f in message.fields if f.GetOptions().Extensions[field_rules_pb2.rules].acting_user)
    return next(named, "")


def _oneof_check(name: str) -> _Check:
    def check(message: Message, path: str, violations: Violations) -> None:
        if message.WhichOneof(name) is None:
            violations.append(FieldViolation(path, "required"))

    return check


def _field_check(field: FieldDescriptor, made: dict[str, list[tuple[str, _Check]]]) -> _Check:
    rules = field.GetOptions().Extensions[field_rules_pb2.rules]
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return _map_check(field, rules)
    one = _value_check(field, rules, made)
    if field.is_repeated:
        return _repeated_check(field, rules, one)
    return _singular_check(field, rules, one)


def _singular_check(field: FieldDescriptor, rules: field_rules_pb2.FieldRules, one: _Check) -> _Check:
    name = field.name
    has_presence = field.has_presence
    required = rules.required
    one_of_several = field.containing_oneof is not None and len(field.containing_oneof.fields) > 1

    def check(message: Message, path: str, violations: Violations) -> None:
        if has_presence and not message.HasField(name):
            if required and not one_of_several:
                violations.append(FieldViolation(path, "required"))
            return
        value = getattr(message, name)
        if required and not value:
            violations.append(FieldViolation(path, "required"))
            return
        one(value, path, violations)

    return check


def _repeated_check(field: FieldDescriptor, rules: field_rules_pb2.FieldRules, one: _Check) -> _Check:
    name, required, most = field.name, rules.required, rules.max_items

    def check(message: Message, path: str, violations: Violations) -> None:
        values = getattr(message, name)
        if required and not values:
            violations.append(FieldViolation(path, "required"))
        elif len(values) > most:
            violations.append(FieldViolation(path, f"at most {most} items"))
        else:
            for index, value in enumerate(values):
                one(value, f"{path}[{index}]", violations)

    return check


def _map_check(field: FieldDescriptor, rules: field_rules_pb2.FieldRules) -> _Check:
    name, most = field.name, rules.max_items
    key_check = _string_check(_DEFAULT_MAX_BYTES, multiline=False, not_empty=True)
    value_check = _string_check(rules.max_bytes or _DEFAULT_MAX_BYTES, multiline=rules.multiline)

    def check(message: Message, path: str, violations: Violations) -> None:
        entries = getattr(message, name)
        if len(entries) > most:
            violations.append(FieldViolation(path, f"at most {most} entries"))
            return
        for key, value in entries.items():
            here = f"{path}[{orjson.dumps(key[:32]).decode()}]"
            key_check(key, here, violations)
            value_check(value, here, violations)

    return check


def _value_check(
    field: FieldDescriptor, rules: field_rules_pb2.FieldRules, made: dict[str, list[tuple[str, _Check]]]
) -> _Check:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_MESSAGE if field.message_type is not None:
            return _message_check(field.message_type, rules, made)
        case FieldDescriptor.CPPTYPE_ENUM if field.enum_type is not None:
            return _enum_check(field.enum_type)
        case FieldDescriptor.CPPTYPE_STRING if field.type == FieldDescriptor.TYPE_BYTES:
            return _bytes_check(rules.max_bytes or _DEFAULT_MAX_BYTES)
        case FieldDescriptor.CPPTYPE_STRING if rules.json:
            return _json_check(rules)
        case FieldDescriptor.CPPTYPE_STRING:
            return _string_check(
                rules.max_bytes or _DEFAULT_MAX_BYTES, multiline=rules.multiline, not_empty=field.is_repeated
            )
        case FieldDescriptor.CPPTYPE_BOOL:
            return _accept
        case _:
            return _number_check(rules)


def _accept(_value: Any, _path: str, _violations: Violations) -> None:
    return


def _message_check(
    message: Descriptor, rules: field_rules_pb2.FieldRules, made: dict[str, list[tuple[str, _Check]]]
) -> _Check:
    if message.full_name == _DURATION:
        return _duration_check(rules)
    if message.full_name == _TIMESTAMP:
        return _timestamp_check
    return _compile(message, made)


def _enum_check(kind: EnumDescriptor) -> _Check:
    known = frozenset(kind.values_by_number)

    def check(value: int, path: str, violations: Violations) -> None:
        if value not in known:
            violations.append(FieldViolation(path, f"{value} is no value of this enum"))

    return check


def _string_check(most: int, *, multiline: bool, not_empty: bool = False) -> _Check:
    forbidden = _CONTROL_BUT_LINES if multiline else _CONTROL

    def check(value: str, path: str, violations: Violations) -> None:
        if not_empty and not value:
            violations.append(FieldViolation(path, "must not be empty"))
        elif len(value) > most or (not value.isascii() and len(value.encode()) > most):
            violations.append(FieldViolation(path, f"at most {most} bytes"))
        elif not value.isprintable() and value.translate(forbidden) != value:
            violations.append(FieldViolation(path, "control characters are not allowed"))

    return check


def _bytes_check(most: int) -> _Check:
    def check(value: bytes, path: str, violations: Violations) -> None:
        if len(value) > most:
            violations.append(FieldViolation(path, f"at most {most} bytes"))

    return check


def _number_check(rules: field_rules_pb2.FieldRules) -> _Check:
    least = rules.min_value if rules.HasField("min_value") else None
    most = rules.max_value if rules.HasField("max_value") else None
    wanted = f"must be at least {least}" if most is None else f"must be from {least} to {most}"

    def check(value: float, path: str, violations: Violations) -> None:
        if (least is not None and value < least) or (most is not None and value > most):
            violations.append(FieldViolation(path, wanted))

    return check


def _duration_check(rules: field_rules_pb2.FieldRules) -> _Check:
    least = rules.min_millis if rules.HasField("min_millis") else 0
    most = rules.max_millis if rules.HasField("max_millis") else _MAX_SPAN_MS

    def check(value: Any, path: str, violations: Violations) -> None:
        seconds, nanos = value.seconds, value.nanos
        if abs(nanos) > 999_999_999 or (seconds > 0 > nanos) or (seconds < 0 < nanos):
            violations.append(FieldViolation(path, "not a well-formed duration"))
        elif not least <= seconds * 1000 + nanos // 1_000_000 <= most:
            violations.append(FieldViolation(path, f"must be from {least} ms to {most} ms"))

    return check


def _timestamp_check(value: Any, path: str, violations: Violations) -> None:
    if not (_MIN_TIMESTAMP_S <= value.seconds <= _MAX_TIMESTAMP_S and 0 <= value.nanos <= 999_999_999):
        violations.append(FieldViolation(path, "not a well-formed timestamp"))


def _json_check(rules: field_rules_pb2.FieldRules) -> _Check:
    most, depth = rules.max_bytes or _DEFAULT_MAX_BYTES, rules.max_depth

    def check(value: str, path: str, violations: Violations) -> None:
        if not value:
            return
        if len(value.encode()) > most:
            violations.append(FieldViolation(path, f"at most {most} bytes"))
            return
        try:
            document = orjson.loads(value)
        except orjson.JSONDecodeError:
            violations.append(FieldViolation(path, "not a JSON document"))
            return
        if _NUL_ESCAPE.search(value):
            violations.append(FieldViolation(path, "the character U+0000 cannot be stored"))
        elif depth and _deeper_than(document, depth):
            violations.append(FieldViolation(path, f"nested deeper than {depth}"))

    return check


def _deeper_than(document: object, depth: int) -> bool:
    level = [document]
    for _ in range(depth):
        level = [
            child
            for parent in level
            if isinstance(parent, dict | list)
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True


def undecodable_texts(message: Descriptor, data: bytes) -> Violations:
    """The strings in the bytes of a message that are not UTF-8; empty when something else is wrong with them.

    protobuf refuses such bytes without a word about the field. Only looked at then, and only up to a bound.
    """
    violations: Violations = []
    try:
        _find_undecodable(message, data, "", violations, iter(range(_MAX_FIELDS_LOOKED_AT)))
    except (ValueError, IndexError):
        return []
    return violations


def _find_undecodable(
    message: Descriptor, data: bytes, path: str, violations: Violations, budget: Iterator[int]
) -> None:
    counts: dict[int, int] = {}
    for number, content in _delimited(data):
        if next(budget, None) is None:
            raise ValueError("too many fields to look at")
        field = message.fields_by_number.get(number)
        if field is None:
            continue
        here = f"{path}.{field.name}" if path else field.name
        kind = field.message_type
        if kind is not None and kind.GetOptions().map_entry:
            inside: Violations = []
            _find_undecodable(kind, content, "", inside, budget)
            violations.extend(FieldViolation(here, violation.description) for violation in inside)
            continue
        if field.is_repeated:
            counts[number] = counts.get(number, -1) + 1
            here = f"{here}[{counts[number]}]"
        if kind is not None:
            _find_undecodable(kind, content, here, violations, budget)
        elif field.type == FieldDescriptor.TYPE_STRING and not _is_utf8(content):
            violations.append(FieldViolation(here, "not UTF-8"))


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def _delimited(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The length-delimited fields of a message (protobuf.dev, "Encoding"). Raises ValueError or IndexError."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        match tag & 7:
            case 0:
                _, at = _varint(data, at)
            case 1:
                at += 8
            case 2:
                length, at = _varint(data, at)
                end = at + length
                if end > len(data):
                    raise ValueError("a field reaches beyond the end")
                yield tag >> 3, data[at:end]
                at = end
            case 5:
                at += 4
            case _:
                raise ValueError("a group, which no message of ours has")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 64:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError("a number without an end")
