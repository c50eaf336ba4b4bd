"""Escapes and unescapes keys of the Realtime Database.

Its keys have none of `. $ # [ ] /` and no control characters, so apps write those, and `%` itself, as `%2E` and the
like: https://firebase.google.com/docs/database/web/structure-data
"""

from __future__ import annotations

import re

_FORBIDDEN = "%.$#[]/\x7f" + "".join(map(chr, range(32)))
_ESCAPES = {f"%{ord(character):02X}": character for character in _FORBIDDEN}
_ESCAPE = re.compile("%(?:..)?", re.DOTALL)
_KEY = re.compile(f"[^{re.escape(_FORBIDDEN.replace('%', ''))}]+")
_TO_ESCAPE = str.maketrans({character: escape for escape, character in _ESCAPES.items()})


def is_key(text: str) -> bool:
    """Return True if RTDB lets in such a key; its size, 768 octets, is beyond that of our names."""
    return _KEY.fullmatch(text) is not None


def unescape_key(key: str) -> str | None:
    """Return a key without its escapes; None if one of its `%` begins no escape that `escape_key` writes.

    Such a key would not come back as it was.
    """
    if "%" not in key:
        return key
    found = _ESCAPE.findall(key)
    if any(escape not in _ESCAPES for escape in found):
        return None
    return _ESCAPE.sub(lambda escape: _ESCAPES[escape[0]], key)


def escape_key(key: str) -> str:
    """Return a key as it may stand in RTDB; the opposite of `unescape_key`."""
    return key.translate(_TO_ESCAPE)
