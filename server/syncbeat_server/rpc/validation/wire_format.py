"""Inspects the bytes of a message: before protobuf parses them, or to name the field for which it refused them.

Each field costs a microsecond or two, in which no other call is served, so each inspection has a budget of fields.
"""

from __future__ import annotations

from collections.abc import Iterator

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from syncbeat_server.errors import FieldReason, FieldViolation

_MAX_FIELDS_INSPECTED = 10_000
MAX_PUBLIC_BYTES, MAX_PUBLIC_FIELDS = 16_384, 64
"""Limits of a request from an unauthenticated caller: in the contract it holds one token, and an enum."""


def public_request_fault(data: bytes) -> FieldViolation | None:
    """Return the fault of an unauthenticated caller's request before it is parsed; None if there is none."""
    if len(data) > MAX_PUBLIC_BYTES:
        return FieldViolation("", f"at most {MAX_PUBLIC_BYTES} bytes, decompressed", FieldReason.TOO_LONG)
    try:
        for _ in length_delimited(data, iter(range(MAX_PUBLIC_FIELDS))):
            pass
    except (ValueError, IndexError):
        description = f"these bytes are not a message of this type, or of more than {MAX_PUBLIC_FIELDS} fields"
        return FieldViolation("", description, FieldReason.MALFORMED)
    return None


def undecodable_strings(message: Descriptor, data: bytes) -> list[FieldViolation]:
    """Return the strings in a message's bytes that are not UTF-8, up to a bound; empty when something else is wrong."""
    violations: list[FieldViolation] = []
    try:
        _find_undecodable(message, data, "", violations, iter(range(_MAX_FIELDS_INSPECTED)))
    except (ValueError, IndexError):
        return []
    return violations


def _find_undecodable(
    message: Descriptor, data: bytes, path: str, violations: list[FieldViolation], budget: Iterator[int]
) -> None:
    counts: dict[int, int] = {}
    for number, content in length_delimited(data, budget):
        field = message.fields_by_number.get(number)
        if field is None:
            continue
        here = f"{path}.{field.name}" if path else field.name
        kind = field.message_type
        if kind is not None and kind.GetOptions().map_entry:
            nested: list[FieldViolation] = []
            _find_undecodable(kind, content, "", nested, budget)
            violations.extend(FieldViolation(here, violation.description, violation.reason) for violation in nested)
            continue
        if field.is_repeated:
            counts[number] = counts.get(number, -1) + 1
            here = f"{here}[{counts[number]}]"
        if kind is not None:
            _find_undecodable(kind, content, here, violations, budget)
        elif field.type == FieldDescriptor.TYPE_STRING and not _is_utf8(content):
            violations.append(FieldViolation(here, "not UTF-8", FieldReason.MALFORMED))


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def length_delimited(data: bytes, budget: Iterator[int]) -> Iterator[tuple[int, bytes]]:
    """Yield number and content of each length-delimited field (protobuf.dev, "Encoding"); each field spends budget.

    Raises:
        ValueError, IndexError: the bytes are no message, or have more fields than the budget.
    """
    at = 0
    while at < len(data):
        if next(budget, None) is None:
            raise ValueError("too many fields to inspect")
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
