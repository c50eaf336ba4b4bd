"""Brings JSON values into one form, in which two are equal if the Realtime Database takes them for the same. Pure.

Numbers: 64-bit integers are exact, and all others are the nearest double, so 1, 1.0 and 1e0 are one number, and
9007199254740993 is not 9007199254740992. Arrays are objects whose keys are the indexes, as its exports turn one into
the other. A null is nothing, in an object as in an array; an empty object or array is something, and the two differ.
Strings and keys are compared code point by code point: nothing is normalized.
"""

from __future__ import annotations

import hashlib
import json
from decimal import Decimal
from typing import Any

import orjson

DIGEST_OCTETS = 16
"""Of a digest: two of a billion values are the same by chance once in 10^20 comparisons."""
_MOST_DIGITS = 19  # of a 64-bit integer, without its sign
_INTEGER_END, _EXACT_END = float(1 << 63), float(1 << 53)


def comparable(value_json: str) -> bytes:
    """Return the comparable form of a JSON text. Raises ValueError: it is none."""
    value = _DECODER.decode(value_json)
    # Most values have neither, and are spared the walk.
    if "[" in value_json or "null" in value_json:
        value = _without_arrays(value)
    return _dump(value)


def digest(value_json: str) -> bytes:
    """Return the digest of the comparable form of a JSON text. Raises ValueError: it is none."""
    return hashlib.blake2b(comparable(value_json), digest_size=DIGEST_OCTETS).digest()


def _dump(value: Any) -> bytes:
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except TypeError:  # a lone surrogate, which no stored value has, and UTF-8 has not either
        return json.dumps(value, sort_keys=True).encode()


def _integer(text: str) -> int | float | dict[str, str]:
    return int(text) if len(text) <= _MOST_DIGITS - 1 else _number(text)


def _number(text: str) -> int | float | dict[str, str]:
    nearest = float(text)
    size = abs(nearest)
    if size < _EXACT_END:
        return int(nearest) if nearest.is_integer() else nearest
    exact = Decimal(text)
    if size <= _INTEGER_END and exact == exact.to_integral_value():
        whole = int(exact)
        if -(1 << 63) <= whole < 1 << 63:
            return whole
    if size == float("inf"):
        return {"\0": str(exact.normalize())}  # above all doubles; no stored key has a zero character
    return int(nearest) if size < _INTEGER_END else nearest


def _refuse(text: str) -> None:
    raise ValueError(f"{text} is no JSON")


def _without_arrays(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_arrays(member) for key, member in value.items() if member is not None}
    if isinstance(value, list) and value:
        return {str(index): _without_arrays(item) for index, item in enumerate(value) if item is not None}
    return value


_DECODER = json.JSONDecoder(parse_int=_integer, parse_float=_number, parse_constant=_refuse)
