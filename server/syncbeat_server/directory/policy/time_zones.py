"""Parses the time zones that devices send: names of the IANA database, or offsets. Pure."""

from __future__ import annotations

import re
from datetime import UTC, timedelta, timezone, tzinfo
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

# As Java, iOS and JavaScript write a zone without a name, hours east of Greenwich: GMT+05:30, GMT+0530, UTC+5, +05:30.
_OFFSET = re.compile(r"(?:GMT|UTC|UT)?([+-])([0-9]{1,2})(?::?([0-5][0-9]))?", re.IGNORECASE)
_MIN_OFFSET, _MAX_OFFSET = timedelta(hours=-12), timedelta(hours=14)  # of all clocks on Earth
# Files beside the database on some machines: the machine's own zone, and zones counted in other ways.
_EXCLUDED_PREFIXES = ("localtime", "posixrules", "posix/", "right/")


def is_known(name: str) -> bool:
    """Return True if this machine knows a zone by that name, or it is an offset."""
    return _find(name) is not None


def known_or_blank(name: str) -> str:
    """Return the zone that a device is registered with: as it reports, or no name for one that is not known here.

    It is perhaps newer than our database, which is no reason to send no pushes to the device.
    """
    return name if is_known(name) else ""


def zone_of(name: str) -> tzinfo:
    """Return the time zone of that name; UTC for no name, and for one that this machine does not know."""
    return _find(name) or UTC


@lru_cache(maxsize=1_000)  # tzdata has 600 names; zoneinfo keeps eight, and reads others from their files each time
def _find(name: str) -> tzinfo | None:
    try:
        return None if name.startswith(_EXCLUDED_PREFIXES) else ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return _offset(name)


def _offset(name: str) -> tzinfo | None:
    found = _OFFSET.fullmatch(name)
    if found is None:
        return None
    sign, hours, minutes = found.groups(default="0")
    size = timedelta(hours=int(hours), minutes=int(minutes))
    offset = -size if sign == "-" else size
    return timezone(offset) if _MIN_OFFSET <= offset <= _MAX_OFFSET else None
