"""Quiet hours and days in all zones of tzdata, around each change of their clocks in ten years."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from zoneinfo import ZoneInfo, available_timezones

import pytest

from syncbeat_server.directory.model import QuietHours
from syncbeat_server.push.policy import quiet_hours

pytestmark = pytest.mark.unit

BEGIN, END = datetime(2025, 1, 1, tzinfo=UTC), datetime(2035, 1, 1, tzinfo=UTC)
MINUTE, WEEK = timedelta(minutes=1), timedelta(days=7)  # no zone changes its clock twice in a week
AROUND = 10 * 60  # minutes before and after a change
# In minutes from what the clock shows when it changes: hours that are skipped or shown twice, and their neighbours.
EDGES = (-190, -60, -30, -1, 0, 20, 59, 60, 125)
MOMENTS = (-200, -60, -31, -1, 0, 10, 29, 60, 119)


def offset(zone: ZoneInfo, at: datetime) -> timedelta:
    found = at.astimezone(zone).utcoffset()
    assert found is not None
    return found


def changes(zone: ZoneInfo) -> Iterator[datetime]:
    """Return when a zone's clock is put forward or back, to the minute."""
    at, before = BEGIN, offset(zone, BEGIN)
    while at < END:
        low, high = at, at + WEEK
        after = offset(zone, high)
        if after != before:
            while high - low > MINUTE:
                middle = low + (high - low) // MINUTE // 2 * MINUTE
                if offset(zone, middle) == before:
                    low = middle
                else:
                    high = middle
            yield high
        at, before = at + WEEK, after


@cache
def all_changes() -> dict[tuple[datetime, timedelta, timedelta], str]:
    """Each change of a clock, by its moment and the offsets before and after, with a zone that makes it."""
    return {
        (at, offset(zone, at - MINUTE), offset(zone, at)): name
        for name in sorted(available_timezones())
        for zone in [ZoneInfo(name)]
        for at in changes(zone)
    }


def shown(zone: ZoneInfo, at: datetime) -> int:
    """The minute of the day that the clock shows."""
    local = at.astimezone(zone)
    return local.hour * 60 + local.minute


def is_quiet(quiet: QuietHours, minute: int) -> bool:
    if quiet.start_minute < quiet.end_minute:
        return quiet.start_minute <= minute < quiet.end_minute
    return minute >= quiet.start_minute or minute < quiet.end_minute


def test_quiet_hours_follow_wall_clock_in_all_zones() -> None:
    assert len(all_changes()) > 500
    looked = held = 0
    for (at, _, _), name in all_changes().items():
        zone = ZoneInfo(name)
        wall = [shown(zone, at + minute * MINUTE) for minute in range(-AROUND, AROUND)]
        edges = [(wall[AROUND] + edge) % 1440 for edge in EDGES]
        for quiet in (QuietHours(start, end) for start in edges for end in edges if start != end):
            for moment in MOMENTS:
                begins = AROUND + moment
                ends = next((i for i in range(begins, 2 * AROUND) if not is_quiet(quiet, wall[i])), None)
                if ends is None:  # a day but for some minutes: held into the next
                    continue
                wait_s = quiet_hours.quiet_for_s(quiet, name, at + moment * MINUTE)
                assert wait_s == (ends - begins) * 60, (name, at, quiet, moment)
                looked, held = looked + 1, held + (wait_s > 0)
    assert looked > held > 10_000


def claims(quiet: QuietHours, zone: str, at: datetime) -> int:
    """Return how often a delivery is claimed until it may be shown."""
    count = 1
    while (wait_s := quiet_hours.quiet_for_s(quiet, zone, at)) > 0 and count < 10:
        at += timedelta(seconds=wait_s)
        count += 1
    return count


def test_quiet_hours_cost_a_delivery_two_claims_at_most_in_all_zones() -> None:
    for (at, before, after), name in all_changes().items():
        show = shown(ZoneInfo(name), at)
        for edge in EDGES:
            for other in (show + edge + 300, show + edge - 300, show + edge + 1439):
                for quiet in (
                    QuietHours((show + edge) % 1440, other % 1440),
                    QuietHours(other % 1440, (show + edge) % 1440),
                ):
                    for now in (at - 280 * MINUTE, at - 10 * MINUTE, at - timedelta(seconds=1.5), at, at + 25 * MINUTE):
                        assert claims(quiet, name, now) <= 2, (name, at, before, after, quiet, now)


def test_days_are_contiguous_in_all_zones() -> None:
    for (at, _, _), name in all_changes().items():
        for minutes in (-1500, -61, -1, 0, 1, 59, 60, 61, 1500):
            now = at + minutes * MINUTE
            begins, ends = quiet_hours.day_bounds(name, now)
            assert begins <= now < ends <= begins + timedelta(hours=27)
            assert quiet_hours.day_bounds(name, ends)[0] == ends, (name, now)
            assert quiet_hours.day_bounds(name, begins - MINUTE)[1] == begins, (name, now)


@pytest.mark.parametrize(
    ("zone", "quiet", "now", "until"),
    [
        # Berlin's clock goes from 2:00 to 3:00 at 01:00 UTC.
        ("Europe/Berlin", QuietHours(22 * 60, 150), "2030-03-31T00:45", "2030-03-31T01:00"),
        ("Europe/Berlin", QuietHours(60, 150), "2030-03-31T00:00", "2030-03-31T01:00"),
        ("Europe/Berlin", QuietHours(150, 240), "2030-03-31T01:00", "2030-03-31T02:00"),  # its start is skipped
        # It goes from 3:00 back to 2:00 at 01:00 UTC: 2:10 comes at 00:10 and again at 01:10.
        ("Europe/Berlin", QuietHours(22 * 60, 150), "2030-10-27T00:10", "2030-10-27T00:30"),
        ("Europe/Berlin", QuietHours(22 * 60, 150), "2030-10-27T00:31", None),
        ("Europe/Berlin", QuietHours(22 * 60, 150), "2030-10-27T01:10", "2030-10-27T01:30"),
        ("Europe/Berlin", QuietHours(135, 180), "2030-10-27T00:15", "2030-10-27T01:00"),
        # Lord Howe's goes by half an hour, Troll's by two.
        ("Australia/Lord_Howe", QuietHours(22 * 60, 135), "2030-10-05T15:00", "2030-10-05T15:30"),
        ("Antarctica/Troll", QuietHours(22 * 60, 120), "2030-03-31T00:30", "2030-03-31T01:00"),
        # Beirut's day begins at 1:00, Santiago's ends twice.
        ("Asia/Beirut", QuietHours(20 * 60, 30), "2030-03-30T21:00", "2030-03-30T22:00"),
        ("America/Santiago", QuietHours(20 * 60, 0), "2030-04-07T02:30", "2030-04-07T04:00"),
        # Always, and so again and again, but once a day.
        ("Europe/Berlin", QuietHours(150, 150), "2030-03-31T00:45", "2030-04-01T00:30"),
    ],
)
def test_quiet_hours_at_dst_changes(zone: str, quiet: QuietHours, now: str, until: str | None) -> None:
    at = datetime.fromisoformat(now).replace(tzinfo=UTC)
    expected = 0.0 if until is None else (datetime.fromisoformat(until).replace(tzinfo=UTC) - at).total_seconds()
    assert quiet_hours.quiet_for_s(quiet, zone, at) == expected
