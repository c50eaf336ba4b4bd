"""Converts between the shapes of RTDB's exports and the canonical form, and writes values as JSON, exactly.

RTDB keeps no arrays: what is written as one becomes an object with indexes as keys. It exports an object as an array if
all of its keys are indexes and more than half of those from 0 to the largest are there; the gaps are null. It keeps
neither null nor empty objects: https://firebase.blog/posts/2014/04/best-practices-arrays-in-firebase
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, TypeAlias

import orjson

from syncbeat_server.transfer.model import Json

ExportedJson: TypeAlias = "dict[str, ExportedJson] | list[ExportedJson] | str | bool | int | Decimal | None"
"""A value as exports have it: with arrays, whose gaps are null."""

_PLAIN_CHARACTERS = 34
_MAX_INT = 2**63 - 1
MAX_INDEX_DIGITS = 10  # RTDB takes keys for indexes up to 2**31


def canonical(value: ExportedJson) -> Json | None:
    """Return a value in canonical form; None if nothing is left of it, as of an empty object."""
    if isinstance(value, list):
        value = {str(index): element for index, element in enumerate(value)}
    if isinstance(value, dict):
        kept = {key: inner for key, member in value.items() if (inner := canonical(member)) is not None}
        return kept or None
    return exact_number(value) if type(value) is int else value


def exported(value: Json) -> ExportedJson:
    """Return a value in canonical form as RTDB exports it."""
    if not isinstance(value, dict):
        return value
    members = {key: exported(member) for key, member in value.items()}
    length = array_length(members)
    return members if length is None else [members.get(str(index)) for index in range(length)]


def array_length(members: Mapping[str, Any]) -> int | None:
    """Return the length of the array as which an object with these members is exported; None if it stays an object."""
    largest = -1
    for key in members:
        if not is_index(key):
            return None
        largest = max(largest, int(key))
    return largest + 1 if members and 2 * len(members) > largest + 1 else None


def is_index(key: str) -> bool:
    """Return True if a key is that of an element of an array."""
    return key.isascii() and key.isdigit() and (key[0] != "0" or key == "0") and len(key) <= MAX_INDEX_DIGITS


def exact_number(value: int) -> int | Decimal:
    """Return a whole number in the type that canonical values have it in: by its size."""
    return value if -_MAX_INT <= value <= _MAX_INT else Decimal(value)


def is_number(value: Json) -> bool:
    """Return True for a number of a canonical value; `bool` is none, though Python has it as an int."""
    return isinstance(value, Decimal) or type(value) is int


def json_text(value: Json | ExportedJson, odd_numbers: list[Decimal] | None = None) -> str:
    """Return a value as JSON. Numbers are written with the digits they were read with.

    `odd_numbers` gets those numbers that have an exponent or more characters than the digits of decimal128.
    """

    def written(number: Any) -> orjson.Fragment:
        if not isinstance(number, Decimal) or not number.is_finite():
            raise TypeError(f"{type(number).__name__} is not of JSON")
        text = str(number)
        if odd_numbers is not None and (len(text) > _PLAIN_CHARACTERS or "E" in text):
            odd_numbers.append(number)
        return orjson.Fragment(text)

    return orjson.dumps(value, default=written).decode()
