"""JSON documents of callers: what can be stored exactly, and read by everybody who asks for it.

PostgreSQL keeps numbers exactly and prints them without an exponent, so that five bytes here may be hundreds, or
hundreds of thousands, for a reader. So numbers are bounded to what decimal128 (IEEE 754) has in digits and a double in
magnitude, and a document by what its numbers come to when they are read.
"""

from __future__ import annotations

import re

import orjson

MAX_DIGITS = 34
LEAST_EXPONENT, MOST_EXPONENT = -307, 308
MAX_OCTETS = 1 << 20
"""What a value may come to when it is read."""

_NUL_ESCAPE = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
_STRING = re.compile(r'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
# Whatever has no exponent and fewer characters than this keeps to the bounds.
_SUSPECT = re.compile(r"[0-9][eE]|[0-9.]{35}")
_NUMBER = re.compile(
    r"(?<![\d.eE+\-])(?=-?\d[\d.]*+[eE]|-?[\d.]{35})-?(0|[1-9]\d*+)(?:\.(\d++))?+(?:[eE]([-+]?\d++))?+(?![\d.eE+\-])",
    re.ASCII,
)
_MOST_POWER_DIGITS = 6  # 256 KiB of digits before it make no more good than this
_TOO_LONG = f"a number has more than {MAX_DIGITS} significant digits"
_TOO_FAR = f"a number's decimal exponent is not from {LEAST_EXPONENT} to {MOST_EXPONENT}"
_TOO_LARGE = f"with its numbers written out it would pass {MAX_OCTETS} bytes"
_NO_BRACKETS = bytes(code for code in range(256) if chr(code) not in "[]{}")


def fault_of(text: str, most_depth: int) -> str:
    """What is wrong with a document, in words; empty: nothing. `most_depth` of 0: it may nest as deep as it likes."""
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        # It also refuses what is more than a double holds, some of which is let in.
        try:
            orjson.loads(_without_long_numbers(text))
        except orjson.JSONDecodeError:
            return "not a JSON document"
    if "\\u0000" in text and _NUL_ESCAPE.search(text):
        return "the character U+0000 cannot be stored"
    deep = most_depth and text.count("[") + text.count("{") > most_depth
    suspect = _SUSPECT.search(text) is not None
    if not (deep or suspect):
        return ""
    bare = _STRING.sub('""', text)
    if deep and _nests_deeper(bare, most_depth):
        return f"nested deeper than {most_depth}"
    return _fault_of_numbers(bare) if suspect else ""


def _without_long_numbers(text: str) -> str:
    # Strings are stepped over, as what they hold is no number.
    parts = re.split(f"({_STRING.pattern})", text, flags=re.DOTALL)
    return "".join(part if part.startswith('"') else _NUMBER.sub("0", part) for part in parts)


def _nests_deeper(bare: str, most: int) -> bool:
    # Each pass takes the innermost pairs away.
    brackets = bare.encode().translate(None, _NO_BRACKETS).replace(b"{", b"[").replace(b"}", b"]")
    for _ in range(most):
        if not brackets:
            return False
        brackets = brackets.replace(b"[]", b"")
    return bool(brackets)


def _fault_of_numbers(bare: str) -> str:
    octets = 0
    for found in _NUMBER.finditer(bare):
        whole, fraction, exponent = found.groups(default="")
        power = exponent.lstrip("+-").lstrip("0") or "0"
        if len(power) > _MOST_POWER_DIGITS:
            return _TOO_FAR
        # It is `digits` times ten to the power of `scale`; a zero counts with the power that it is written with.
        digits = (whole + fraction).lstrip("0")
        scale = (-int(power) if exponent.startswith("-") else int(power)) - len(fraction)
        adjusted = scale + max(len(digits) - 1, 0)
        if not LEAST_EXPONENT <= adjusted <= MOST_EXPONENT:
            return _TOO_FAR
        if len(digits.rstrip("0") if scale >= 0 else digits) > MAX_DIGITS:
            return _TOO_LONG
        octets += max(adjusted, 0) + 1 + (1 - scale if scale < 0 else 0)
        if octets > MAX_OCTETS:
            return _TOO_LARGE
    return ""
