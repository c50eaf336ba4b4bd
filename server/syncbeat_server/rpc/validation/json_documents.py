"""JSON documents of callers: what can be stored exactly, and read by everybody who asks for it.

PostgreSQL keeps numbers exactly and prints them without an exponent, so that five bytes here may be hundreds, or
hundreds of thousands, for a reader. So numbers are bounded to what decimal128 (IEEE 754) has in digits and a double in
magnitude, and a document by what its numbers come to when they are read.
"""

from __future__ import annotations

import functools
import re

import orjson

MAX_DIGITS = 34
LEAST_EXPONENT, MOST_EXPONENT = -307, 308
MAX_OCTETS = 1 << 20
"""What a value may come to when it is read."""

_NUL_ESCAPE = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
# One that does not end is taken to the end of the text, so that none of what it holds is looked at as another's start.
_STRING = re.compile(r'"(?:[^"\\]++|\\.)*+"?+', re.DOTALL)
# Whatever has no exponent and fewer characters than this keeps to the bounds.
_SUSPECT = re.compile(r"[0-9][eE]|[0-9.]{35}")
# And so does an exponent of two digits, behind fewer characters than that.
_POWERS = re.compile(r"[0-9][eE][-+]?0*+([0-9]{0,2}+)(?![0-9])")
_FRACTIONS = re.compile(r"(?:\.([0-9]++))?+[eE]([-+]?)0*+([0-9]{0,2}+)(?![0-9])")
_FAR = re.compile(r"[0-9.]{35}|[eE][-+]?0*+[0-9]{3}")
_NUMBER = re.compile(
    r"(?<![\d.eE+\-])(?=-?[\d.]{35}|-?[\d.]++[eE][-+]?0*+\d{3})"
    r"-?(0|[1-9]\d*+)(?:\.(\d++))?+(?:[eE]([-+]?\d++))?+(?![\d.eE+\-])",
    re.ASCII,
)
# What a double does not hold, which orjson refuses, has at least this.
_HUGE = re.compile(r"[eE]\+?0*+[0-9]{3}|(?<![0-9])[0-9]{300}")
_MOST_POWER_DIGITS = 6  # 256 KiB of digits before it make no more good than this
_TOO_LONG = f"a number has more than {MAX_DIGITS} significant digits"
_TOO_FAR = f"a number's decimal exponent is not from {LEAST_EXPONENT} to {MOST_EXPONENT}"
_TOO_LARGE = f"with its numbers written out it would pass {MAX_OCTETS} bytes"
_NO_DOCUMENT = "not a JSON document"
_NO_BRACKETS = bytes(code for code in range(256) if chr(code) not in "[]{}")
_BRACKETS = bytes.maketrans(b"{}", b"[]")


def fault_of(text: str, most_depth: int) -> str:
    """What is wrong with a document, in words; empty: nothing. `most_depth` of 0: it may nest as deep as it likes.

    The worst that 256 KiB can be takes this a few hundredths of a second, in which nobody else is served: so each pass
    is one call of C over all of the text, and Python looks at single numbers only where few are let in.
    """
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        # It also refuses what is more than a double holds, some of which is let in.
        if not _HUGE.search(text):
            return _NO_DOCUMENT
        try:
            orjson.loads(_without_long_numbers(text))
        except orjson.JSONDecodeError:
            return _NO_DOCUMENT
    if "\\u0000" in text and _NUL_ESCAPE.search(text):
        return "the character U+0000 cannot be stored"
    deep = most_depth and text.count("[") + text.count("{") > most_depth
    suspect = _SUSPECT.search(text) is not None
    if not (deep or suspect):
        return ""
    bare = _without_strings(text)
    if deep and not _at_most_deep(most_depth).fullmatch(bare.encode().translate(_BRACKETS, _NO_BRACKETS)):
        return f"nested deeper than {most_depth}"
    return _fault_of_numbers(bare) if suspect else ""


def _without_long_numbers(text: str) -> str:
    # Strings are stepped over, as what they hold is no number.
    parts = re.split(f"({_STRING.pattern})", text, flags=re.DOTALL)
    return "".join(part if part.startswith('"') else _NUMBER.sub("0", part) for part in parts)


def _without_strings(text: str) -> str:
    # Of a document that is JSON: backslashes are in strings only, two of them are one character.
    if "\\" in text:
        text = text.replace("\\\\", "").replace('\\"', "")
    return '""'.join(text.split('"')[::2])


@functools.cache
def _at_most_deep(most: int) -> re.Pattern[bytes]:
    pattern = ""
    for _ in range(most):
        pattern = rf"(?:\[{pattern}\])*+"
    return re.compile(pattern.encode())


def _fault_of_numbers(bare: str) -> str:
    if not _FAR.search(bare):
        return _fault_of_near_numbers(bare, 0)
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
    return _fault_of_near_numbers(_NUMBER.sub("0", bare), octets)


def _fault_of_near_numbers(bare: str, octets: int) -> str:
    # Exponents of two digits. What PostgreSQL makes of the whole value is checked there, once more and exactly.
    at_most = sum(int(power or "0") for power in _POWERS.findall(bare))
    if octets + at_most > MAX_OCTETS:
        octets += sum(
            int(power or "0") if sign == "-" else max(0, int(power or "0") - len(fraction))
            for fraction, sign, power in _FRACTIONS.findall(bare)
        )
    return _TOO_LARGE if octets > MAX_OCTETS else ""
