"""Quiet hours by the clock on the wall, days, and what systems let through."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syncbeat_server.directory.model import QuietHours
from syncbeat_server.push.policy import quiet_hours, wake_budget

pytestmark = pytest.mark.unit

BERLIN = "Europe/Berlin"
NIGHT = QuietHours(22 * 60, 7 * 60)
NOON_REST = QuietHours(13 * 60, 15 * 60)


def at(text: str, zone: str = BERLIN, fold: int = 0) -> datetime:
    """A moment by the clock on the wall."""
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold).astimezone(UTC)


@pytest.mark.parametrize(
    ("quiet", "now", "until"),
    [
        (NIGHT, "2030-01-15T21:59", None),
        (NIGHT, "2030-01-15T22:00", "2030-01-16T07:00"),
        (NIGHT, "2030-01-16T00:00", "2030-01-16T07:00"),
        (NIGHT, "2030-01-16T06:59", "2030-01-16T07:00"),
        (NIGHT, "2030-01-16T07:00", None),
        (NOON_REST, "2030-01-16T12:59", None),
        (NOON_REST, "2030-01-16T13:00", "2030-01-16T15:00"),
        (NOON_REST, "2030-01-16T15:00", None),
        (QuietHours(480, 480), "2030-01-16T12:00", "2030-01-17T08:00"),  # always
        # The clock goes from 2:00 to 3:00: the night is an hour shorter.
        (NIGHT, "2030-03-30T23:00", "2030-03-31T07:00"),
        # It goes from 3:00 back to 2:00: an hour longer.
        (NIGHT, "2030-10-26T23:00", "2030-10-27T07:00"),
    ],
)
def test_quiet_hours_end_by_wall_clock(quiet: QuietHours, now: str, until: str | None) -> None:
    expected = 0.0 if until is None else (at(until) - at(now)).total_seconds()
    assert quiet_hours.quiet_for_s(quiet, BERLIN, at(now)) == expected


def test_quiet_hours_across_a_dst_change() -> None:
    assert quiet_hours.quiet_for_s(NIGHT, BERLIN, at("2030-03-30T23:00")) == 7 * 3600
    assert quiet_hours.quiet_for_s(NIGHT, BERLIN, at("2030-10-26T23:00")) == 9 * 3600


@pytest.mark.parametrize(
    ("quiet", "zone", "hour"),
    [
        (QuietHours(0, 60, "Asia/Tokyo"), BERLIN, 15),  # the user's zone wins over the device's
        (QuietHours(0, 60), "Asia/Tokyo", 15),
        (QuietHours(0, 60), "", 0),
        (QuietHours(0, 60), "Atlantis/Center", 0),
        (QuietHours(0, 60, "../etc/passwd"), "", 0),
    ],
)
def test_quiet_hours_use_the_device_time_zone(quiet: QuietHours, zone: str, hour: int) -> None:
    for other in range(24):
        now = datetime(2030, 6, 1, other, 30, tzinfo=UTC)
        assert (quiet_hours.quiet_for_s(quiet, zone, now) > 0) is (other == hour)


ZONES = st.sampled_from([BERLIN, "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe", "Pacific/Apia", "UTC"])
MOMENTS = st.integers(0, 3 * 365 * 1440).map(
    lambda minutes: datetime(2029, 1, 1, tzinfo=UTC) + timedelta(minutes=minutes)
)


@settings(max_examples=500)
@given(start=st.integers(0, 1439), length=st.integers(1, 1439), zone=ZONES, now=MOMENTS)
def test_quiet_hours_hold_ends_within_a_day(start: int, length: int, zone: str, now: datetime) -> None:
    quiet = QuietHours(start, (start + length) % 1440)
    waits = 0.0
    for _ in range(3):  # an hour that the clock shows twice may hold a second time
        wait_s = quiet_hours.quiet_for_s(quiet, zone, now + timedelta(seconds=waits))
        assert 0.0 <= wait_s <= 25.5 * 3600
        waits += wait_s
    assert quiet_hours.quiet_for_s(quiet, zone, now + timedelta(seconds=waits)) == 0.0


@pytest.mark.parametrize(("day", "hours"), [("2030-01-15", 24), ("2030-03-31", 23), ("2030-10-27", 25)])
def test_day_is_that_of_the_device(day: str, hours: int) -> None:
    begins, ends = quiet_hours.day_bounds(BERLIN, at(f"{day}T12:00"))
    assert (begins, (ends - begins).total_seconds()) == (at(f"{day}T00:00"), hours * 3600)


def test_wakeup_budgets_match_the_platforms() -> None:
    assert wake_budget.wake_budget("ANDROID") == wake_budget.WakeBudget(20.0, 180.0)
    assert wake_budget.wake_budget("IOS") == wake_budget.WakeBudget(3.0, 1200.0)
    assert wake_budget.wake_budget("WEB") is None
