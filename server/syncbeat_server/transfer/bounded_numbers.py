"""Bounds the numbers of an export before its parser sees them.

The parser (ijson 3.6, its C extension) ends the process by SIGSEGV when Python refuses to make an integer of a number's
digits (more than 4,300) anywhere behind the first buffer. No number of so many digits can be moved.
"""

from __future__ import annotations

import re
from typing import IO

from syncbeat_server.transfer.export_faults import without_mark

MAX_RUN = 1_000
"""The most digits in a row that are left as they are. The feed takes 34 significant ones, and exponents up to 308."""

_STEP = MAX_RUN // 8
_MAYBE_LONG = re.compile(rb"[0-9]{8}")  # in a sample of each `_STEP`th octet: a longer run is in eight in a row
_LONG = re.compile(rb"[0-9]{%d}" % (MAX_RUN + 1))
# A string, also one that the text ends in; or a longer run outside of all strings.
_STRING_OR_LONG = re.compile(rb'"(?:[^"\\]++|\\.)*+"?+|[0-9]{%d,}+' % (MAX_RUN + 1), re.DOTALL)
_DIGITS = b"0123456789"
_QUOTE, _BACKSLASH = b'"', b"\\"


class BoundedNumbers:
    """Reads JSON from a file with each longer run of digits outside of strings as `MAX_RUN` + 1 ones.

    So such a number stays one that the feed does not take, whether the run was of its whole part, its fraction or its
    exponent, and is told by its path. Everything else is passed on as it is, at the speed of a search for quotes.
    """

    def __init__(self, export: IO[bytes]) -> None:
        self._export = export
        self._is_start = True
        self._in_string = False
        self._is_escaped = False  # the last octet was a backslash that the next belongs to
        self._run = 0  # digits at the end of what was read, outside of strings

    def read(self, size: int = -1) -> bytes:
        """Return the next octets, not more than `size`; empty at the end. Raises as `without_mark`."""
        while chunk := self._export.read(size):
            if self._is_start:
                chunk, self._is_start = without_mark(self._export, chunk), False
            if kept := self._bounded(chunk):
                return kept
        return b""

    def _bounded(self, chunk: bytes) -> bytes:
        kept = chunk
        leading = len(chunk) - len(chunk.lstrip(_DIGITS)) if self._run else 0
        if leading and self._run + leading > MAX_RUN:
            kept = b"1" * max(0, MAX_RUN + 1 - self._run) + chunk[leading:]
        if _MAYBE_LONG.search(kept[::_STEP]) and _LONG.search(kept):
            kept = self._cut(kept)
        self._follow_strings(chunk)
        self._follow_digits(kept, leading)
        return kept

    def _cut(self, chunk: bytes) -> bytes:
        opening = (_QUOTE if self._in_string else b"") + (_BACKSLASH if self._is_escaped else b"")
        return _STRING_OR_LONG.sub(_bounded_run, opening + chunk)[len(opening) :]

    def _follow_strings(self, chunk: bytes) -> None:
        """Note if the next octet is in a string: behind an odd number of quotes that no backslash escapes."""
        text = chunk[1:] if self._is_escaped else chunk
        self._is_escaped, escaped = False, 0
        if _BACKSLASH in text:
            text = text.replace(_BACKSLASH * 2, b"")
            self._is_escaped = text.endswith(_BACKSLASH)
            escaped = text.count(_BACKSLASH + _QUOTE)
        self._in_string ^= (text.count(_QUOTE) - escaped) % 2 == 1

    def _follow_digits(self, kept: bytes, leading: int) -> None:
        trailing = len(kept) - len(kept.rstrip(_DIGITS))
        goes_on = trailing == len(kept) and (trailing or leading)
        self._run = 0 if self._in_string else (self._run if goes_on else 0) + trailing


def _bounded_run(found: re.Match[bytes]) -> bytes:
    return found[0] if found[0].startswith(_QUOTE) else b"1" * (MAX_RUN + 1)
