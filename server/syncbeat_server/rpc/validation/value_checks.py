"""Checks of single field values against their rules: text, bytes, numbers, enums, durations, timestamps and JSON.

Each returns the fault of a value in words, or an empty string.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf.descriptor import EnumDescriptor

from syncbeat_server.rpc.contract.field_rules import FieldRules
from syncbeat_server.rpc.validation.json_documents import document_fault

ValueCheck = Callable[[Any], str]

DEFAULT_MAX_BYTES = 128
_MAX_SPAN_MS = 366 * 86_400_000
_NANOS_OF_S, _NANOS_OF_MS = 1_000_000_000, 1_000_000
_MIN_TIMESTAMP_S = -62_135_596_800  # 0001-01-01, from the comments of timestamp.proto
_MAX_TIMESTAMP_S = 253_402_300_799  # 9999-12-31
_CONTROL = dict.fromkeys((*range(32), 127))
_CONTROL_BUT_LINES = {code: None for code in _CONTROL if chr(code) not in "\n\r\t"}


def max_bytes_of(rules: FieldRules) -> int:
    """Return the largest size of a field's value in bytes of UTF-8, by its rule or by default."""
    return rules.max_bytes or DEFAULT_MAX_BYTES


def accept(_value: Any) -> str:
    """Accept any value: a bool cannot be wrong."""
    return ""


def enum_check(kind: EnumDescriptor) -> ValueCheck:
    """Return a check that a number is a value of this enum."""
    known = frozenset(kind.values_by_number)

    def check(value: int) -> str:
        return "" if value in known else f"{value} is no value of this enum"

    return check


def string_check(max_bytes: int, *, multiline: bool, not_empty: bool = False) -> ValueCheck:
    """Return a check of a text's size and for control characters; `multiline` allows line breaks and tabs."""
    forbidden = _CONTROL_BUT_LINES if multiline else _CONTROL

    def check(value: str) -> str:
        if not_empty and not value:
            return "must not be empty"
        if len(value) > max_bytes or (not value.isascii() and len(value.encode()) > max_bytes):
            return f"at most {max_bytes} bytes"
        if not value.isprintable() and value.translate(forbidden) != value:
            return "control characters are not allowed"
        return ""

    return check


def visible_ascii_check(max_bytes: int) -> ValueCheck:
    """Return a check that a text is visible ASCII without spaces, as a header value needs it."""

    def check(value: str) -> str:
        if not value.isascii() or not value.isprintable() or " " in value:
            return "only visible ASCII characters, without spaces"
        return f"at most {max_bytes} bytes" if len(value) > max_bytes else ""

    return check


def bytes_check(max_bytes: int) -> ValueCheck:
    """Return a check of the size of a bytes field."""

    def check(value: bytes) -> str:
        return f"at most {max_bytes} bytes" if len(value) > max_bytes else ""

    return check


def number_check(rules: FieldRules) -> ValueCheck:
    """Return a check that a number lies within the bounds of its rules, which belong to the range."""
    least, most = rules.min_value, rules.max_value
    wanted = f"must be at least {least}" if most is None else f"must be from {least} to {most}"

    def check(value: float) -> str:
        return wanted if (least is not None and value < least) or (most is not None and value > most) else ""

    return check


def duration_check(rules: FieldRules) -> ValueCheck:
    """Return a check that a `Duration` is well-formed and within its bounds; by default from 0 to 366 days."""
    least = rules.min_millis or 0
    most = _MAX_SPAN_MS if rules.max_millis is None else rules.max_millis
    # In nanoseconds: rounded to milliseconds, 300 s and a nanosecond would pass as 300 s.
    least_nanos, most_nanos = least * _NANOS_OF_MS, most * _NANOS_OF_MS

    def check(value: Any) -> str:
        seconds, nanos = value.seconds, value.nanos
        if abs(nanos) > 999_999_999 or (seconds > 0 > nanos) or (seconds < 0 < nanos):
            return "not a well-formed duration"
        if not least_nanos <= seconds * _NANOS_OF_S + nanos <= most_nanos:
            return f"must be from {least} ms to {most} ms"
        return ""

    return check


def timestamp_check(value: Any) -> str:
    """Check that a `Timestamp` is well-formed, as timestamp.proto defines it."""
    good = _MIN_TIMESTAMP_S <= value.seconds <= _MAX_TIMESTAMP_S and 0 <= value.nanos <= 999_999_999
    return "" if good else "not a well-formed timestamp"


def json_check(rules: FieldRules) -> ValueCheck:
    """Return a check that a text is a JSON document within its size and depth; empty means that there is none."""
    max_bytes, max_depth = max_bytes_of(rules), rules.max_depth

    def check(value: str) -> str:
        if not value:
            return ""
        if len(value.encode()) > max_bytes:
            return f"at most {max_bytes} bytes"
        return document_fault(value, max_depth)

    return check
