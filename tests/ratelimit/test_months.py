"""Tests the months of quotas: one for each instant in every time zone, also where clocks are set at midnight."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncbeat_server.ratelimit.policy.months import month_at

pytestmark = pytest.mark.unit

ZONES = sorted(zone for zone in available_timezones() if not zone.startswith(("posix", "right", "localtime")))
VIENNA = "Europe/Vienna"


@pytest.mark.parametrize(
    ("zone", "utc", "first"),
    [
        ("UTC", "2030-01-31T23:59:59", "2030-01-01"),
        ("UTC", "2030-02-01T00:00:00", "2030-02-01"),
        (VIENNA, "2030-06-30T21:59:59", "2030-06-01"),
        (VIENNA, "2030-06-30T22:00:00", "2030-07-01"),  # summer time
        (VIENNA, "2030-12-31T23:00:00", "2031-01-01"),
        ("America/Los_Angeles", "2030-03-01T07:59:59", "2030-02-01"),
        ("Pacific/Kiritimati", "2030-01-31T10:00:00", "2030-02-01"),
    ],
)
def test_month_is_that_of_the_time_zone(zone: str, utc: str, first: str) -> None:
    month = month_at(datetime.fromisoformat(utc).replace(tzinfo=UTC), zone)
    assert month.first == date.fromisoformat(first)


def test_month_does_not_come_back_when_clocks_go_back_over_midnight() -> None:
    # On 1 November 2009 clocks went from 00:01 back to 23:01 of the day before.
    zone, begin = "America/St_Johns", datetime(2009, 11, 1, 2, 30, tzinfo=UTC)
    assert (begin + timedelta(minutes=30)).astimezone(ZoneInfo(zone)).month == 10
    firsts = [month_at(begin + timedelta(minutes=at), zone).first for at in range(-3, 90)]
    assert firsts == [date(2009, 10, 1)] * 3 + [date(2009, 11, 1)] * 90


def test_month_begins_when_its_midnight_is_skipped() -> None:
    # On 1 October 2017 clocks went from midnight to 01:00.
    zone, begin = "America/Asuncion", datetime(2017, 10, 1, 4, tzinfo=UTC)
    assert begin.astimezone(ZoneInfo(zone)).hour == 1
    before, after = month_at(begin - timedelta(seconds=1), zone), month_at(begin, zone)
    assert (before.first, after.first) == (date(2017, 9, 1), date(2017, 10, 1))
    assert before.ends_at == after.begins_at == begin.timestamp()


@given(
    st.sampled_from(ZONES),
    st.floats(min_value=86_400.0, max_value=4e9),
)
def test_months_follow_each_other_without_gap(zone: str, now: float) -> None:
    month = month_at(datetime.fromtimestamp(now, UTC), zone)
    assert month.begins_at <= now < month.ends_at
    following = month_at(datetime.fromtimestamp(month.ends_at, UTC), zone)
    assert following.begins_at == month.ends_at
    assert following.first == (month.first + timedelta(days=32)).replace(day=1)
    assert month_at(datetime.fromtimestamp(month.begins_at, UTC), zone) == month


@pytest.mark.parametrize("zone", [VIENNA, "America/St_Johns", "Africa/Casablanca", "Australia/Lord_Howe"])
def test_months_of_years_hour_by_hour_only_advance(zone: str) -> None:
    hours = (datetime(2007, 1, 1, tzinfo=UTC) + timedelta(hours=at) for at in range(24 * 366 * 4))
    firsts = [month_at(hour, zone).first for hour in hours]
    assert all(one <= other for one, other in pairwise(firsts))
    begin, end = firsts[0], firsts[-1]
    assert len(set(firsts)) == 12 * (end.year - begin.year) + end.month - begin.month + 1
