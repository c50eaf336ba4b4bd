"""Writes the details of an entry as JSON of bounded size. Pure."""

from __future__ import annotations

import orjson

from syncbeat_server.audit.model import Detail, Details

MAX_OCTETS = 2_048
MAX_CHARACTERS = 256
"""Of one text: longer than any id, which has 128 octets at most."""
_ROOM = 32  # for `"omitted":N`


def details_json(details: Details) -> str:
    """Return details as JSON of at most `MAX_OCTETS`: long texts are cut, and of too many the last are left out."""
    kept: dict[str, Detail] = {}
    octets, omitted = 2, 0
    for name, value in details.items():
        bounded = _bounded(value)
        size = len(orjson.dumps({name: bounded})) - 1
        if omitted or octets + size > MAX_OCTETS - _ROOM:
            omitted += 1
            continue
        octets += size
        kept[name] = bounded
    if omitted:
        kept["omitted"] = omitted
    return orjson.dumps(kept).decode()


def _bounded(value: Detail) -> Detail:
    if not isinstance(value, str):
        return value
    # PostgreSQL takes U+0000 in no text, and UTF-8 has no lone surrogates.
    text = value.replace("\0", "").encode("utf-8", "replace").decode()
    return text if len(text) <= MAX_CHARACTERS else f"{text[: MAX_CHARACTERS - 1]}…"
