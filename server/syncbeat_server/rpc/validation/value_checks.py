"""Checks of single field values against their rules: text, bytes, numbers, enums, durations, timestamps and JSON.

Each returns the fault of a value, whose path is empty, or None.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf.descriptor import EnumDescriptor

from syncbeat_server.errors import ConfigurationError, FieldReason, FieldViolation
from syncbeat_server.rpc.contract.field_rules import FieldRules
from syncbeat_server.sync.content.json_limits import document_fault, reason_of

Fault = FieldViolation
ValueCheck = Callable[[Any], Fault | None]

_NANOS_OF_S, _NANOS_OF_MS = 1_000_000_000, 1_000_000
_MIN_TIMESTAMP_S = -62_135_596_800  # 0001-01-01, from the comments of timestamp.proto
_MAX_TIMESTAMP_S = 253_402_300_799  # 9999-12-31
_CONTROL = dict.fromkeys((*range(32), 127))
_CONTROL_BUT_LINES = {code: None for code in _CONTROL if chr(code) not in "\n\r\t"}


REQUIRED = Fault("", "required", FieldReason.REQUIRED)
_EMPTY = Fault("", "must not be empty", FieldReason.REQUIRED)
_NO_CONTROL = Fault("", "control characters are not allowed", FieldReason.FORBIDDEN_CHARACTERS)
_VISIBLE_ASCII = Fault("", "only visible ASCII characters, without spaces", FieldReason.FORBIDDEN_CHARACTERS)
_NO_DURATION = Fault("", "not a well-formed duration", FieldReason.MALFORMED)
_NO_TIMESTAMP = Fault("", "not a well-formed timestamp", FieldReason.MALFORMED)


def max_bytes_of(rules: FieldRules) -> int:
    """Return the largest size of a field's value in bytes of UTF-8.

    Raises:
        ConfigurationError: no rule bounds it, as one has to.
    """
    if rules.max_bytes is None:
        raise ConfigurationError("the contract has a text without a bound in bytes")
    return rules.max_bytes


def accept(_value: Any) -> Fault | None:
    """Accept any value: a bool cannot be wrong."""
    return None


def enum_check(kind: EnumDescriptor) -> ValueCheck:
    """Return a check that a number is a value of this enum."""
    known = frozenset(kind.values_by_number)

    def check(value: int) -> Fault | None:
        return None if value in known else Fault("", f"{value} is no value of this enum", FieldReason.UNKNOWN_VALUE)

    return check


def text_check(rules: FieldRules) -> ValueCheck:
    """Return the check of a text by its rules."""
    if rules.json:
        return _json_check(rules)
    if rules.visible_ascii:
        return _visible_ascii_check(max_bytes_of(rules))
    return string_check(max_bytes_of(rules), multiline=rules.multiline, not_empty=rules.not_empty)


def string_check(max_bytes: int, *, multiline: bool, not_empty: bool = False) -> ValueCheck:
    """Return a check of a text's size and for control characters; `multiline` allows line breaks and tabs."""
    forbidden = _CONTROL_BUT_LINES if multiline else _CONTROL
    too_long = _too_long(max_bytes)

    def check(value: str) -> Fault | None:
        if not_empty and not value:
            return _EMPTY
        if len(value) > max_bytes or (not value.isascii() and len(value.encode()) > max_bytes):
            return too_long
        if not value.isprintable() and value.translate(forbidden) != value:
            return _NO_CONTROL
        return None

    return check


def _visible_ascii_check(max_bytes: int) -> ValueCheck:
    """Return a check that a text is visible ASCII without spaces, as a header value needs it."""
    too_long = _too_long(max_bytes)

    def check(value: str) -> Fault | None:
        if not value.isascii() or not value.isprintable() or " " in value:
            return _VISIBLE_ASCII
        return too_long if len(value) > max_bytes else None

    return check


def _too_long(max_bytes: int) -> Fault:
    return Fault("", f"at most {max_bytes} bytes", FieldReason.TOO_LONG)


def number_check(rules: FieldRules) -> ValueCheck:
    """Return a check that a number lies within the bounds of its rules, which belong to the range."""
    least, most = rules.min_value, rules.max_value
    wanted = f"must be at least {least}" if most is None else f"must be from {least} to {most}"
    fault = Fault("", wanted, FieldReason.OUT_OF_RANGE)

    def check(value: float) -> Fault | None:
        return fault if (least is not None and value < least) or (most is not None and value > most) else None

    return check


def duration_check(rules: FieldRules) -> ValueCheck:
    """Return a check that a `Duration` is well-formed and within its bounds.

    Raises:
        ConfigurationError: no rule bounds it, as one has to.
    """
    least, most = rules.min_millis, rules.max_millis
    if least is None or most is None:
        raise ConfigurationError("the contract has a duration without bounds")
    # In nanoseconds: rounded to milliseconds, 300 s and a nanosecond would pass as 300 s.
    least_nanos, most_nanos = least * _NANOS_OF_MS, most * _NANOS_OF_MS
    outside = Fault("", f"must be from {least} ms to {most} ms", FieldReason.OUT_OF_RANGE)

    def check(value: Any) -> Fault | None:
        seconds, nanos = value.seconds, value.nanos
        if abs(nanos) > 999_999_999 or (seconds > 0 > nanos) or (seconds < 0 < nanos):
            return _NO_DURATION
        return None if least_nanos <= seconds * _NANOS_OF_S + nanos <= most_nanos else outside

    return check


def timestamp_check(value: Any) -> Fault | None:
    """Check that a `Timestamp` is well-formed, as timestamp.proto defines it."""
    good = _MIN_TIMESTAMP_S <= value.seconds <= _MAX_TIMESTAMP_S and 0 <= value.nanos <= 999_999_999
    return None if good else _NO_TIMESTAMP


def _json_check(rules: FieldRules) -> ValueCheck:
    """Return a check that a text is a JSON document within its size and depth; empty means that there is none."""
    max_bytes, max_depth = max_bytes_of(rules), rules.max_depth
    too_long = _too_long(max_bytes)

    def check(value: str) -> Fault | None:
        if not value:
            return None
        if len(value.encode()) > max_bytes:
            return too_long
        fault = document_fault(value, max_depth)
        return Fault("", fault, reason_of(fault)) if fault else None

    return check
