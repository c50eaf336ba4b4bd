"""When a delivery may be shown: quiet hours, the day's maximum, and what the device's system lets through. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from syncbeat_server.directory.model import QuietHours

_DAY_MINUTES = 1440


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

    Told by the clock on the wall, so that they follow daylight saving time: an end that the clock skips comes as much
    later, one that it shows twice counts the second time.
    """
    zone = zone_of(quiet.zone or device_zone)
    local = now.astimezone(zone)
    minute = local.hour * 60 + local.minute
    length = (quiet.end_minute - quiet.start_minute) % _DAY_MINUTES or _DAY_MINUTES
    passed = (minute - quiet.start_minute) % _DAY_MINUTES
    if passed >= length:
        return 0.0
    began = local.date() if minute >= quiet.start_minute else local.date() - timedelta(days=1)
    ends_on = began if quiet.end_minute > quiet.start_minute else began + timedelta(days=1)
    end = datetime.combine(ends_on, time(quiet.end_minute // 60, quiet.end_minute % 60, fold=1), zone)
    return max(1.0, (end.astimezone(UTC) - now).total_seconds())


def day_of(device_zone: str, now: datetime) -> tuple[datetime, datetime]:
    """When the day began that it is on the device, and when the next one begins."""
    zone = zone_of(device_zone)
    today = now.astimezone(zone).date()
    begins = datetime.combine(today, time(), zone).astimezone(UTC)
    ends = datetime.combine(today + timedelta(days=1), time(), zone).astimezone(UTC)
    return begins, ends


def zone_of(name: str) -> ZoneInfo:
    """The time zone of that name; UTC for none, and for one that this machine does not know."""
    try:
        return ZoneInfo(name or "UTC")
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return ZoneInfo("UTC")
