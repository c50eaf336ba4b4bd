"""Finds the month of an app in its time zone, to which quotas belong. Pure."""

from __future__ import annotations

from datetime import date, datetime
from functools import lru_cache
from typing import NamedTuple
from zoneinfo import ZoneInfo

_MONTHS = 12


class Month(NamedTuple):
    """Holds a month: the date on which it begins, which names it, and its first instant and the next month's.

    Both are seconds since 1970.
    """

    first: date
    begins_at: float
    ends_at: float


def month_at(now: datetime, time_zone: str) -> Month:
    """Return the month that it is in a time zone.

    A month begins at the first instant at which its first midnight has come. So each instant belongs to one month, and
    no month comes back where clocks are set back across that midnight.
    """
    local, at = now.astimezone(ZoneInfo(time_zone)), now.timestamp()
    index = local.year * _MONTHS + local.month - 1
    if at < _begin(index, time_zone):
        index -= 1
    elif at >= _begin(index + 1, time_zone):
        index += 1
    year, month = divmod(index, _MONTHS)
    return Month(date(year, month + 1, 1), _begin(index, time_zone), _begin(index + 1, time_zone))


@lru_cache(maxsize=1_000)
def _begin(index: int, time_zone: str) -> float:
    year, month = divmod(index, _MONTHS)
    # Of a midnight that comes twice this is the first; one that is skipped comes when the clock is put forward.
    return datetime(year, month + 1, 1, tzinfo=ZoneInfo(time_zone)).timestamp()
