"""Shortens the spelling of numbers, so that values from before they were bounded fit the receivers of gRPC clients.

PostgreSQL prints numbers without an exponent: 1e308, twelve bytes of jsonb, as 309 digits. A value of a megabyte is 27
megabytes of text then, of which a receiver with gRPC's defaults takes four.
"""

from __future__ import annotations

import re

MAX_SENT_OCTETS = 3 << 20
"""The largest value in octets on the wire: gRPC's receivers take 4 MiB, and an answer has more than its values."""

_MIN_ZEROS = 40
# Strings are matched first, so that digits in them are skipped.
_STRING_OR_LONG_NUMBER = re.compile(rf'"(?:[^"\\]++|\\.)*+"|-?[0-9][0-9.]{{{_MIN_ZEROS},}}+', re.DOTALL)


def shorten_numbers(text: str) -> str | None:
    """Return a value, as PostgreSQL prints it, with the same numbers in fewer digits; None if it is too large to send.

    Whole numbers that end in 40 zeros or more, and fractions that begin with so many, get an exponent. A value that
    stays larger than 3 MiB has control characters by the hundred thousand, six octets each in JSON.
    """
    shorter = _STRING_OR_LONG_NUMBER.sub(_spelled, text)
    return shorter if len(shorter.encode()) <= MAX_SENT_OCTETS else None


def _spelled(found: re.Match[str]) -> str:
    text = found[0]
    if text.startswith('"'):
        return text
    whole, _, fraction = text.partition(".")
    if fraction and (fraction.strip("0") or whole.lstrip("-") == "0"):
        digits = fraction.lstrip("0") or "0"
        is_small = whole.lstrip("-") == "0" and len(fraction) - len(digits) >= _MIN_ZEROS
        return f"{whole[:-1]}{digits}e-{len(fraction)}" if is_small else text
    digits = whole.rstrip("0")
    zeros = len(whole) - len(digits)
    return f"{digits}e{zeros}" if zeros >= _MIN_ZEROS else text
