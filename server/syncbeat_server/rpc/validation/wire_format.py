"""Looks at the bytes of a message before protobuf does, or after it has refused them without a word about the field.

Each field costs a microsecond or two here, in which nobody else is served: so each look ends after so many fields.
"""

from __future__ import annotations

from collections.abc import Iterator

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from syncbeat_server.errors import FieldViolation

_MAX_FIELDS_LOOKED_AT = 10_000
MAX_PUBLIC_BYTES, MAX_PUBLIC_FIELDS = 16_384, 64
"""The most fields of a request whose caller nobody knows: in the contract that is one token, and an enum."""


def fault_of_public(data: bytes) -> str:
    """Name the fault of a request of an unknown caller, before it is parsed; empty: there is none."""
    if len(data) > MAX_PUBLIC_BYTES:
        return f"at most {MAX_PUBLIC_BYTES} bytes, decompressed"
    try:
        for _ in _delimited(data, iter(range(MAX_PUBLIC_FIELDS))):
            pass
    except (ValueError, IndexError):
        return f"these bytes are not a message of this type, or of more than {MAX_PUBLIC_FIELDS} fields"
    return ""


def undecodable_texts(message: Descriptor, data: bytes) -> list[FieldViolation]:
    """The strings in the bytes of a message that are not UTF-8, up to a bound; empty when something else is wrong."""
    violations: list[FieldViolation] = []
    try:
        _find_undecodable(message, data, "", violations, iter(range(_MAX_FIELDS_LOOKED_AT)))
    except (ValueError, IndexError):
        return []
    return violations


def _find_undecodable(
    message: Descriptor, data: bytes, path: str, violations: list[FieldViolation], budget: Iterator[int]
) -> None:
    counts: dict[int, int] = {}
    for number, content in _delimited(data, budget):
        field = message.fields_by_number.get(number)
        if field is None:
            continue
        here = f"{path}.{field.name}" if path else field.name
        kind = field.message_type
        if kind is not None and kind.GetOptions().map_entry:
            inside: list[FieldViolation] = []
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


def _delimited(data: bytes, budget: Iterator[int]) -> Iterator[tuple[int, bytes]]:
    """The length-delimited fields of a message (protobuf.dev, "Encoding"); every field takes one from the budget.

    Raises:
        ValueError, IndexError: it is no message, or it has more fields than that.
    """
    at = 0
    while at < len(data):
        if next(budget, None) is None:
            raise ValueError("too many fields to look at")
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
