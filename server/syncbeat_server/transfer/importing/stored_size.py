"""Computes how large a value is where it is stored, so that what the feed refuses is known before it is written."""

from __future__ import annotations

from decimal import Decimal

from syncbeat_server.defaults import VALUE_OCTETS
from syncbeat_server.transfer.model import Json

MAY_PASS_OCTETS = VALUE_OCTETS // 5
"""No JSON of fewer octets, without numbers that have an exponent, is stored in more than `VALUE_OCTETS`.

A member `"a":1,` has 6 octets as text and 20 in PostgreSQL's form at most: two entries, a key, a padded number.
"""

_WORD = 4  # a header, an entry, the alignment of numbers and containers
_SHORT_WEIGHTS = range(-64, 64)  # NUMERIC_SHORT_WEIGHT_MIN to _MAX
_SHORT_SCALE_MAX = 63


def passes_limit(value: Json) -> bool:
    """Return True if the feed refuses a value: by its text, or in the form in which PostgreSQL keeps it.

    The constraints `changes_value_octets` and `changes_value_size` compare `octet_length(value::text)` and
    `pg_column_size(value)`.
    """
    return text_octets(value) > VALUE_OCTETS or stored_octets(value) > VALUE_OCTETS


def stored_octets(value: Json) -> int:
    """Return the octets of a value as jsonb.

    A word for its length, then the root; a root that is no object is an array of one, with a header and an entry:
    https://github.com/postgres/postgres/blob/REL_17_STABLE/src/include/utils/jsonb.h
    """
    start = _WORD if isinstance(value, dict) else 3 * _WORD
    return _end(value, start)


def text_octets(value: Json) -> int:
    """Return the octets of a value as PostgreSQL writes it: a space after each colon and comma, no exponents."""
    if isinstance(value, bool):
        return 4 if value else 5
    if isinstance(value, str):
        return _string_octets(value)
    if isinstance(value, dict):
        return sum(_string_octets(key) + 2 + text_octets(member) + 2 for key, member in value.items()) + (
            0 if value else 2
        )
    number = Decimal(value)
    scale = _scale_and_low(number)[0]
    whole = max(number.adjusted(), 0) + 1 if number else 1
    return (number < 0) + whole + (scale + 1 if scale else 0)


def _end(value: Json, start: int) -> int:
    """Return where a value ends that may begin at `start`: strings follow at once, numbers and objects at a word."""
    if isinstance(value, bool):
        return start
    if isinstance(value, str):
        return start + len(value.encode())
    aligned = -(-start // _WORD) * _WORD
    if not isinstance(value, dict):
        return aligned + _numeric_octets(Decimal(value))
    keys = {key.encode(): member for key, member in value.items()}
    end = aligned + _WORD + 2 * _WORD * len(keys) + sum(map(len, keys))
    for _, member in sorted(keys.items(), key=lambda one: (len(one[0]), one[0])):
        end = _end(member, end)
    return end


def _numeric_octets(number: Decimal) -> int:
    """Return the octets of a number: its length, a header, and its digits to the base of 10,000."""
    scale, low = _scale_and_low(number)
    high = number.adjusted() // 4
    digits = high - low // 4 + 1 if number else 0
    is_short = scale <= _SHORT_SCALE_MAX and (not number or high in _SHORT_WEIGHTS)
    return _WORD + (2 if is_short else 4) + 2 * digits


def _scale_and_low(number: Decimal) -> tuple[int, int]:
    """Return the decimals a number is written with, and the exponent of its last digit that is not zero."""
    _, digits, exponent = number.as_tuple()
    if not isinstance(exponent, int):
        raise TypeError("not a number of JSON")
    zeros = len(digits) - len("".join(map(str, digits)).rstrip("0"))
    return max(0, -exponent), exponent + zeros


def _string_octets(text: str) -> int:
    escapes = sum(text.count(character) for character in '"\\\b\f\n\r\t')
    others = 0
    if not text.isprintable():
        others = sum(character < " " and character not in "\b\f\n\r\t" for character in text)
    return len(text.encode()) + 2 + escapes + 5 * others
