"""When a delivery may be shown: quiet hours, the day's maximum, and what the device's system lets through. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta, tzinfo

from syncbeat_server.directory.model import QuietHours
from syncbeat_server.directory.time_zones import zone_of

_DAY_MINUTES = 1440
_SECOND = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class WakeBudget:
    """What a system lets through to one device: at most `most` at once, and one more each `refill_s`."""

    most: float
    refill_s: float


# Android: a collapsible message may come 20 times at once, then every 3 minutes (firebase.google.com, "Throttling and
# quotas"). iOS: background notifications, "two or three per hour" (developer.apple.com, "Pushing background updates to
# your App"). Browsers publish none.
_BUDGETS = {"ANDROID": WakeBudget(20.0, 180.0), "IOS": WakeBudget(3.0, 1200.0)}


def wake_budget(platform: str) -> WakeBudget | None:
    """The budget of a platform; None: without one."""
    return _BUDGETS.get(platform)


def quiet_for_s(quiet: QuietHours, device_zone: str, now: datetime) -> float:
    """Seconds until quiet hours end; 0 outside of them.

    It is quiet whenever the clock on the wall shows a time between start and end, also where it is put forward or back:
    an end that it skips comes when it is put forward, and times that it shows twice are judged alike both times. So
    what is held once may be shown at the end, and the end is the same whenever it is asked for.
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
    """How long it stays quiet by a clock that is not changed; start and end at one minute: always."""
    passed = (local.hour * 60 + local.minute - quiet.start_minute) % _DAY_MINUTES
    length = (quiet.end_minute - quiet.start_minute) % _DAY_MINUTES or _DAY_MINUTES
    return 0.0 if passed >= length else (length - passed) * 60 - local.second - local.microsecond / 1e6


def _change_of_clock(zone: tzinfo, after: datetime, until: datetime) -> datetime | None:
    """When a zone's clock is put forward or back within a day, to the second; no zone does so twice."""
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


def day_of(device_zone: str, now: datetime) -> tuple[datetime, datetime]:
    """When the day began that it is on the device, and when the next one begins."""
    zone = zone_of(device_zone)
    today = now.astimezone(zone).date()
    begins = datetime.combine(today, time(), zone).astimezone(UTC)
    ends = datetime.combine(today + timedelta(days=1), time(), zone).astimezone(UTC)
    return begins, ends
