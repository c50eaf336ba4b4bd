"""Checks that callers' JSON documents can be stored exactly and read by every client.

PostgreSQL keeps numbers exactly and prints them without an exponent, so five bytes here may become hundreds, or
hundreds of thousands, for a reader. So a number is bounded to the digits of decimal128 (IEEE 754) and the magnitude of
a double, and a document by its size with all numbers written out.
"""

from __future__ import annotations

import functools
import re

import orjson

from syncbeat_server.defaults import VALUE_OCTETS
from syncbeat_server.errors import FieldReason

MAX_DIGITS = 34
MIN_EXPONENT, MAX_EXPONENT = -307, 308

_NUL_ESCAPE = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
# An unterminated string is taken to the end of the text, so that nothing in it counts as the start of another.
_STRING = re.compile(r'"(?:[^"\\]++|\\.)*+"?+', re.DOTALL)
# A number without an exponent and with fewer characters than this is within the bounds.
_SUSPECT = re.compile(r"[0-9][eE]|[0-9.]{35}")
# So is one with an exponent of two digits after fewer characters than that.
_POWERS = re.compile(r"[0-9][eE][-+]?0*+([0-9]{0,2}+)(?![0-9])")
_FRACTIONS = re.compile(r"(?:\.([0-9]++))?+[eE]([-+]?)0*+([0-9]{0,2}+)(?![0-9])")
_LONG_EXPONENT = re.compile(r"[0-9.]{35}|[eE][-+]?0*+[0-9]{3}")
_NUMBER = re.compile(
    r"(?<![\d.eE+\-])(?=-?[\d.]{35}|-?[\d.]++[eE][-+]?0*+\d{3})"
    r"-?(0|[1-9]\d*+)(?:\.(\d++))?+(?:[eE]([-+]?\d++))?+(?![\d.eE+\-])",
    re.ASCII,
)
# Numbers that a double cannot hold, which orjson refuses, have at least this.
_HUGE = re.compile(r"[eE]\+?0*+[0-9]{3}|(?<![0-9])[0-9]{300}")
_MAX_EXPONENT_DIGITS = 6  # 256 KiB of digits before the exponent cannot make up for more than this
_TOO_LONG = f"a number has more than {MAX_DIGITS} significant digits"
_OUT_OF_RANGE = f"a number's decimal exponent is not from {MIN_EXPONENT} to {MAX_EXPONENT}"
_TOO_LARGE = f"with its numbers written out it would pass {VALUE_OCTETS} bytes"
_NOT_JSON = "not a JSON document"
_NUL = "the character U+0000 cannot be stored"
_TOO_DEEP = "nested deeper than"
_REASONS = {
    _TOO_LONG: FieldReason.OUT_OF_RANGE,
    _OUT_OF_RANGE: FieldReason.OUT_OF_RANGE,
    _TOO_LARGE: FieldReason.TOO_LONG,
    _NOT_JSON: FieldReason.MALFORMED,
    _NUL: FieldReason.FORBIDDEN_CHARACTERS,
}
_NO_BRACKETS = bytes(code for code in range(256) if chr(code) not in "[]{}")
_BRACKETS = bytes.maketrans(b"{}", b"[]")


def document_fault(text: str, max_depth: int) -> str:
    """Return the fault of a document in words; empty if there is none. A `max_depth` of 0 allows any depth.

    The worst document of 256 KiB takes a few hundredths of a second, in which no other call is served. So each pass is
    one call of C over the whole text, and Python inspects single numbers only where few can pass.
    """
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        # orjson also refuses numbers that a double cannot hold, some of which are allowed here.
        if not _HUGE.search(text):
            return _NOT_JSON
        try:
            orjson.loads(_without_long_numbers(text))
        except orjson.JSONDecodeError:
            return _NOT_JSON
    return content_fault(text, max_depth)


def content_fault(text: str, max_depth: int) -> str:
    """Return as `document_fault` the fault of a text that is known to be JSON."""
    if "\\u0000" in text and _NUL_ESCAPE.search(text):
        return _NUL
    deep = max_depth and text.count("[") + text.count("{") > max_depth
    suspect = _SUSPECT.search(text) is not None
    if not (deep or suspect):
        return ""
    bare = _without_strings(text)
    if deep and not _nesting_pattern(max_depth).fullmatch(bare.encode().translate(_BRACKETS, _NO_BRACKETS)):
        return f"{_TOO_DEEP} {max_depth}"
    return _number_fault(bare) if suspect else ""


def reason_of(fault: str) -> FieldReason:
    """Return the reason of a fault that `document_fault` returned."""
    return FieldReason.TOO_DEEP if fault.startswith(_TOO_DEEP) else _REASONS[fault]


def _without_long_numbers(text: str) -> str:
    # Strings are kept as they are, since digits within them are no number.
    parts = re.split(f"({_STRING.pattern})", text, flags=re.DOTALL)
    return "".join(part if part.startswith('"') else _NUMBER.sub("0", part) for part in parts)


def _without_strings(text: str) -> str:
    # The text is known to be JSON: backslashes occur in strings only, and two of them are one character.
    if "\\" in text:
        text = text.replace("\\\\", "").replace('\\"', "")
    return '""'.join(text.split('"')[::2])


@functools.cache
def _nesting_pattern(max_depth: int) -> re.Pattern[bytes]:
    pattern = ""
    for _ in range(max_depth):
        pattern = rf"(?:\[{pattern}\])*+"
    return re.compile(pattern.encode())


def _number_fault(bare: str) -> str:
    if not _LONG_EXPONENT.search(bare):
        return _near_number_fault(bare, 0)
    octets = 0
    for found in _NUMBER.finditer(bare):
        whole, fraction, exponent = found.groups(default="")
        power = exponent.lstrip("+-").lstrip("0") or "0"
        if len(power) > _MAX_EXPONENT_DIGITS:
            return _OUT_OF_RANGE
        # The value is `digits` times ten to the power of `scale`; a zero counts with the power it is written with.
        digits = (whole + fraction).lstrip("0")
        scale = (-int(power) if exponent.startswith("-") else int(power)) - len(fraction)
        adjusted = scale + max(len(digits) - 1, 0)
        if not MIN_EXPONENT <= adjusted <= MAX_EXPONENT:
            return _OUT_OF_RANGE
        if len(digits.rstrip("0") if scale >= 0 else digits) > MAX_DIGITS:
            return _TOO_LONG
        octets += max(adjusted, 0) + 1 + (1 - scale if scale < 0 else 0)
        if octets > VALUE_OCTETS:
            return _TOO_LARGE
    return _near_number_fault(_NUMBER.sub("0", bare), octets)


def _near_number_fault(bare: str, octets: int) -> str:
    # Exponents of two digits. PostgreSQL checks the size of the whole value once more, exactly.
    at_most = sum(int(power or "0") for power in _POWERS.findall(bare))
    if octets + at_most > VALUE_OCTETS:
        octets += sum(
            int(power or "0") if sign == "-" else max(0, int(power or "0") - len(fraction))
            for fraction, sign, power in _FRACTIONS.findall(bare)
        )
    return _TOO_LARGE if octets > VALUE_OCTETS else ""
