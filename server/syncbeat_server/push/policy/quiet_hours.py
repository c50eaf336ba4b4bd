"""Computes quiet hours and the limits of a day in the device's time zone. Pure."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta, tzinfo

from syncbeat_server.directory.model import QuietHours
from syncbeat_server.directory.policy.time_zones import zone_of

_DAY_MINUTES = 1440
_SECOND = timedelta(seconds=1)


def quiet_for_s(quiet: QuietHours, device_zone: str, now: datetime) -> float:
    """Return the seconds until the quiet hours end; 0 outside of them.

    It is quiet while the clock on the wall shows a time between start and end, across changes of daylight saving time
    too: if the end is skipped, they end when the clock is put forward; times that are shown twice count alike both
    times. So a message that was held once can be shown at the end, and the end is the same whenever it is computed.
    """
    zone = zone_of(quiet.zone or device_zone)
    left_s, at = _quiet_left_s(quiet, now.astimezone(zone)), now
    while left_s > 0:
        end = at + timedelta(seconds=left_s)
        change = _change_of_clock(zone, at, end)
        if change is None:
            at = end
            break
        at, left_s = change, _quiet_left_s(quiet, change.astimezone(zone))
    return 0.0 if at is now else max(1.0, (at - now).total_seconds())


def _quiet_left_s(quiet: QuietHours, local: datetime) -> float:
    """Return how long it stays quiet by a clock that is not changed; equal start and end mean all day."""
    passed = (local.hour * 60 + local.minute - quiet.start_minute) % _DAY_MINUTES
    length = (quiet.end_minute - quiet.start_minute) % _DAY_MINUTES or _DAY_MINUTES
    return 0.0 if passed >= length else (length - passed) * 60 - local.second - local.microsecond / 1e6


def _change_of_clock(zone: tzinfo, after: datetime, until: datetime) -> datetime | None:
    """Return the moment, to the second, at which a zone's clock is changed within a day; no zone changes twice."""
    before = after.astimezone(zone).utcoffset()
    if until.astimezone(zone).utcoffset() == before:
        return None
    low, high = after.replace(microsecond=0), until
    while high - low > _SECOND:
        middle = low + (high - low) // _SECOND // 2 * _SECOND
        if middle.astimezone(zone).utcoffset() == before:
            low = middle
        else:
            high = middle
    return high


def day_bounds(device_zone: str, now: datetime) -> tuple[datetime, datetime]:
    """Return the beginning and the end of the day that it is on the device."""
    zone = zone_of(device_zone)
    today = now.astimezone(zone).date()
    begins = datetime.combine(today, time(), zone).astimezone(UTC)
    ends = datetime.combine(today + timedelta(days=1), time(), zone).astimezone(UTC)
    return begins, ends
