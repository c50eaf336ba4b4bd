"""Time zones as devices name them: by the names of the IANA database, or by an offset. Pure."""

from __future__ import annotations

import re
from datetime import UTC, timedelta, timezone, tzinfo
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

# As Java, iOS and JavaScript write a zone without a name, hours east of Greenwich: GMT+05:30, GMT+0530, UTC+5, +05:30.
_OFFSET = re.compile(r"(?:GMT|UTC|UT)?([+-])([0-9]{1,2})(?::?([0-5][0-9]))?", re.IGNORECASE)
_LEAST, _MOST = timedelta(hours=-12), timedelta(hours=14)  # of all clocks on Earth
# What a machine may have beside the database: its own zone, and the zones counted in other ways.
_NO_NAMES = ("localtime", "posixrules", "posix/", "right/")


def is_known(name: str) -> bool:
    """Whether this machine knows a zone by that name, or it is an offset."""
    return _find(name) is not None


def zone_of(name: str) -> tzinfo:
    """The time zone of that name; UTC for none, and for one that this machine does not know."""
    return _find(name) or UTC


@lru_cache(maxsize=1_000)  # tzdata has 600 names; zoneinfo keeps eight, and reads others from their files each time
def _find(name: str) -> tzinfo | None:
    try:
        return None if name.startswith(_NO_NAMES) else ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return _offset(name)


def _offset(name: str) -> tzinfo | None:
    found = _OFFSET.fullmatch(name)
    if found is None:
        return None
    sign, hours, minutes = found.groups(default="0")
    size = timedelta(hours=int(hours), minutes=int(minutes))
    offset = -size if sign == "-" else size
    return timezone(offset) if _LEAST <= offset <= _MOST else None
