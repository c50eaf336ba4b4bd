"""Field rules of the contract (`field_rules.proto`), compiled once for each message type into a list of checks.

Every violation is found, so that a caller learns all of them at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import orjson
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from syncbeat.v1 import field_rules_pb2
from syncbeat_server.errors import FieldViolation
from syncbeat_server.rpc.validation.json_documents import fault_of

Violations = list[FieldViolation]
Faults = Sequence[FieldViolation]
Validator = Callable[[Any], Faults]
# Says what is wrong with a value: in words, or for a message which of its fields. Paths are put together only then.
_Check = Callable[[Any], str | Faults]
_NONE: Faults = ()

_DEFAULT_MAX_BYTES = 128
_MAX_SPAN_MS = 366 * 86_400_000
_NANOS_OF_S, _NANOS_OF_MS = 1_000_000_000, 1_000_000
_DURATION = "google.protobuf.Duration"
_TIMESTAMP = "google.protobuf.Timestamp"
_MIN_TIMESTAMP_S = -62_135_596_800  # 0001-01-01, from the comments of timestamp.proto
_MAX_TIMESTAMP_S = 253_402_300_799  # 9999-12-31
_CONTROL = dict.fromkeys((*range(32), 127))
_CONTROL_BUT_LINES = {code: None for code in _CONTROL if chr(code) not in "\n\r\t"}


def compile_validator(message: Descriptor) -> Validator:
    """The validator of a message type, which answers everything that is wrong with a message of it."""
    return _compile(message, {})


def _compile(message: Descriptor, made: dict[str, Validator]) -> Validator:
    known = made.get(message.full_name)
    if known is not None:
        return known
    checks: list[Validator] = []
    others: list[Validator] = []
    are_texts_good = _quick_check([field for field in message.fields if _is_plain_text(field)])

    def validate(value: Message) -> Faults:
        # Each check once, whatever it finds: that of a document may take a tenth of a second.
        found = _NONE
        for check in others if are_texts_good(value) else checks:
            faults = check(value)
            if faults:
                found = [*found, *faults]
        return found

    made[message.full_name] = validate
    for field in message.fields:
        checks.append(_field_check(field, made))
        if not _is_plain_text(field) and not _is_plain_flag(field):
            others.append(checks[-1])
    required = (o for o in message.oneofs if o.GetOptions().Extensions[field_rules_pb2.one_required])
    for oneof in required:
        checks.append(_oneof_check(oneof.name))
        others.append(checks[-1])
    return validate


def _is_plain_text(field: FieldDescriptor) -> bool:
    rules = _rules(field)
    other = field.is_repeated or field.has_presence or rules.json or rules.multiline or rules.visible_ascii
    return field.type == FieldDescriptor.TYPE_STRING and not other


def _is_plain_flag(field: FieldDescriptor) -> bool:
    return field.type == FieldDescriptor.TYPE_BOOL and not (field.is_repeated or _rules(field).required)


def _quick_check(texts: Sequence[FieldDescriptor]) -> Callable[[Any], bool]:
    """Make a check that passes messages whose texts are plainly right: short and printable ASCII.

    Most messages are so, and a function made for the type finds it sooner than a check for each field.
    """
    lines = ["def are_texts_good(message):"]
    for field in texts:
        rules = _rules(field)
        wrong = f"len(text) > {_most_bytes(rules)} or not text.isascii() or not text.isprintable()"
        lines.append(f"    text = message.{field.name}")
        lines.append(f"    if {'not text or' if rules.required else 'text and'} ({wrong}): return False")
    lines.append("    return True")
    made: dict[str, Any] = {}
    exec("\n".join(lines), made)  # noqa: S102  # names and numbers of our own contract
    are_texts_good: Callable[[Any], bool] = made["are_texts_good"]
    return are_texts_good


def _rules(field: FieldDescriptor) -> field_rules_pb2.FieldRules:
    found: field_rules_pb2.FieldRules = field.GetOptions().Extensions[field_rules_pb2.rules]
    return found


def _most_bytes(rules: field_rules_pb2.FieldRules) -> int:
    return rules.max_bytes or _DEFAULT_MAX_BYTES


def acting_user_field(message: Descriptor) -> str:
    """The field that names the user for whom a service calls; empty when the message has none."""
    named = (field.name for field in message.fields if _rules(field).acting_user)
    return next(named, "")


def _at(path: str, said: str | Faults) -> Faults:
    if isinstance(said, str):
        return (FieldViolation(path, said),)
    return [FieldViolation(f"{path}.{fault.path}", fault.description) for fault in said]


def _oneof_check(name: str) -> Validator:
    missing = (FieldViolation(name, "required"),)

    def check(message: Message) -> Faults:
        return missing if message.WhichOneof(name) is None else _NONE

    return check


def _field_check(field: FieldDescriptor, made: dict[str, Validator]) -> Validator:
    rules = _rules(field)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return _map_check(field, rules)
    one = _value_check(field, rules, made)
    if field.is_repeated:
        return _repeated_check(field, rules, one)
    if field.has_presence:
        return _present_check(field, rules, one)
    return _plain_check(field, rules, one)


def _present_check(field: FieldDescriptor, rules: field_rules_pb2.FieldRules, one: _Check) -> Validator:
    name, required = field.name, rules.required
    one_of_several = field.containing_oneof is not None and len(field.containing_oneof.fields) > 1
    absent = (FieldViolation(name, "required"),) if required and not one_of_several else _NONE

    def check(message: Message) -> Faults:
        if not message.HasField(name):
            return absent
        value = getattr(message, name)
        said = "required" if required and not value else one(value)
        return _at(name, said) if said else _NONE

    return check


def _plain_check(field: FieldDescriptor, rules: field_rules_pb2.FieldRules, one: _Check) -> Validator:
    # Without presence the default value is the same as none.
    name = field.name
    absent = (FieldViolation(name, "required"),) if rules.required else _NONE

    def check(message: Message) -> Faults:
        value = getattr(message, name)
        if not value:
            return absent
        said = one(value)
        return _at(name, said) if said else _NONE

    return check


def _repeated_check(field: FieldDescriptor, rules: field_rules_pb2.FieldRules, one: _Check) -> Validator:
    name, required, most = field.name, rules.required, rules.max_items

    def check(message: Message) -> Faults:
        values = getattr(message, name)
        if not values:
            return (FieldViolation(name, "required"),) if required else _NONE
        if len(values) > most:
            return (FieldViolation(name, f"at most {most} items"),)
        found = _NONE
        for index, value in enumerate(values):
            said = one(value)
            if said:
                found = [*found, *_at(f"{name}[{index}]", said)]
        return found

    return check


def _map_check(field: FieldDescriptor, rules: field_rules_pb2.FieldRules) -> Validator:
    name, most = field.name, rules.max_items
    key_check = _string_check(_DEFAULT_MAX_BYTES, multiline=False, not_empty=True)
    value_check = _string_check(_most_bytes(rules), multiline=rules.multiline)

    def check(message: Message) -> Faults:
        entries = getattr(message, name)
        if len(entries) > most:
            return (FieldViolation(name, f"at most {most} entries"),)
        found = _NONE
        for key, value in entries.items():
            for said in (key_check(key), value_check(value)):
                if said:
                    found = [*found, *_at(f"{name}[{orjson.dumps(key[:32]).decode()}]", said)]
        return found

    return check


def _value_check(field: FieldDescriptor, rules: field_rules_pb2.FieldRules, made: dict[str, Validator]) -> _Check:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_MESSAGE if field.message_type is not None:
            return _message_check(field.message_type, rules, made)
        case FieldDescriptor.CPPTYPE_ENUM if field.enum_type is not None:
            return _enum_check(field.enum_type)
        case FieldDescriptor.CPPTYPE_STRING if field.type == FieldDescriptor.TYPE_BYTES:
            return _bytes_check(_most_bytes(rules))
        case FieldDescriptor.CPPTYPE_STRING if rules.json:
            return _json_check(rules)
        case FieldDescriptor.CPPTYPE_STRING if rules.visible_ascii:
            return _visible_check(_most_bytes(rules))
        case FieldDescriptor.CPPTYPE_STRING:
            return _string_check(_most_bytes(rules), multiline=rules.multiline, not_empty=field.is_repeated)
        case FieldDescriptor.CPPTYPE_BOOL:
            return _accept
        case _:
            return _number_check(rules)


def _accept(_value: Any) -> str:
    return ""


def _message_check(message: Descriptor, rules: field_rules_pb2.FieldRules, made: dict[str, Validator]) -> _Check:
    if message.full_name == _DURATION:
        return _duration_check(rules)
    if message.full_name == _TIMESTAMP:
        return _timestamp_check
    return _compile(message, made)


def _enum_check(kind: EnumDescriptor) -> _Check:
    known = frozenset(kind.values_by_number)

    def check(value: int) -> str:
        return "" if value in known else f"{value} is no value of this enum"

    return check


def _string_check(most: int, *, multiline: bool, not_empty: bool = False) -> _Check:
    forbidden = _CONTROL_BUT_LINES if multiline else _CONTROL

    def check(value: str) -> str:
        if not_empty and not value:
            return "must not be empty"
        if len(value) > most or (not value.isascii() and len(value.encode()) > most):
            return f"at most {most} bytes"
        if not value.isprintable() and value.translate(forbidden) != value:
            return "control characters are not allowed"
        return ""

    return check


def _visible_check(most: int) -> _Check:
    def check(value: str) -> str:
        if not value.isascii() or not value.isprintable() or " " in value:
            return "only visible ASCII characters, without spaces"
        return f"at most {most} bytes" if len(value) > most else ""

    return check


def _bytes_check(most: int) -> _Check:
    def check(value: bytes) -> str:
        return f"at most {most} bytes" if len(value) > most else ""

    return check


def _number_check(rules: field_rules_pb2.FieldRules) -> _Check:
    least = rules.min_value if rules.HasField("min_value") else None
    most = rules.max_value if rules.HasField("max_value") else None
    wanted = f"must be at least {least}" if most is None else f"must be from {least} to {most}"

    def check(value: float) -> str:
        return wanted if (least is not None and value < least) or (most is not None and value > most) else ""

    return check


def _duration_check(rules: field_rules_pb2.FieldRules) -> _Check:
    least = rules.min_millis if rules.HasField("min_millis") else 0
    most = rules.max_millis if rules.HasField("max_millis") else _MAX_SPAN_MS
    # Exactly: as milliseconds, 300 s and a nanosecond were 300 s.
    least_nanos, most_nanos = least * _NANOS_OF_MS, most * _NANOS_OF_MS

    def check(value: Any) -> str:
        seconds, nanos = value.seconds, value.nanos
        if abs(nanos) > 999_999_999 or (seconds > 0 > nanos) or (seconds < 0 < nanos):
            return "not a well-formed duration"
        if not least_nanos <= seconds * _NANOS_OF_S + nanos <= most_nanos:
            return f"must be from {least} ms to {most} ms"
        return ""

    return check


def _timestamp_check(value: Any) -> str:
    good = _MIN_TIMESTAMP_S <= value.seconds <= _MAX_TIMESTAMP_S and 0 <= value.nanos <= 999_999_999
    return "" if good else "not a well-formed timestamp"


def _json_check(rules: field_rules_pb2.FieldRules) -> _Check:
    most, depth = _most_bytes(rules), rules.max_depth

    def check(value: str) -> str:
        if not value:
            return ""
        if len(value.encode()) > most:
            return f"at most {most} bytes"
        return fault_of(value, depth)

    return check
