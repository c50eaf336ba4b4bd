"""Time zones as devices name them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from syncbeat_server.directory.model import QuietHours
from syncbeat_server.directory.policy import time_zones
from syncbeat_server.push.policy import quiet_hours

pytestmark = pytest.mark.unit

SUMMER = datetime(2030, 7, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("name", "minutes"),
    [
        *(("GMT+05:30", 330), ("GMT+0530", 330), ("GMT+5:30", 330), ("GMT+530", 330), ("GMT-03:30", -210)),
        *(("UTC+05:45", 345), ("UTC+5", 300), ("UTC-11", -660), ("UT+1", 60), ("gmt+14:00", 840), ("GMT+00:00", 0)),
        *(("+05:30", 330), ("-0330", -210), ("+01", 60), ("-12:00", -720), ("GMT-0", 0), ("GMT+0", 0), ("GMT0", 0)),
        # Of the IANA database, where the sign is the other way round, and what follows daylight saving time.
        *(("Etc/GMT+5", -300), ("Etc/GMT-14", 840), ("Europe/Berlin", 120), ("Asia/Kolkata", 330), ("UTC", 0)),
        *(("Asia/Calcutta", 330), ("EST5EDT", -240), ("America/Argentina/Buenos_Aires", -180)),
    ],
)
def test_time_zone_is_known_by_name_or_offset(name: str, minutes: int) -> None:
    assert time_zones.is_known(name)
    assert SUMMER.astimezone(time_zones.zone_of(name)).utcoffset() == timedelta(minutes=minutes)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "GMT+14:01",
            "GMT-12:01",
            "GMT+24:00",
            "GMT+05:60",
            "GMT+5:3",
            "GMT+",
            "GMT 05:30",
            "GMT+05:30:00",
            "GMT+\u0660\u0665:\u0663\u0660",
        ),
        *("+", "-", "5", "0530", "GMT+05:30 ", " UTC", "UTC+05:30\n", "++05:30", "UTC+-5", "PST+5", "GMT+05:30x"),
        *("Atlantis/Center", "Europe", "Europe/", "/Europe/Berlin", "../etc/passwd", "Europe/../UTC", "tzdata.zi"),
        *("__init__.py", "zone.tab", ".", "..", "India Standard Time", "IST", "Europe/Berlin\0", "Zürich", "\ud800"),
        # This machine's own, and others that are no names of IANA's though a machine may have them.
        *("localtime", "posixrules", "posix/Europe/Berlin", "right/Europe/Berlin", ""),
    ],
)
def test_time_zone_unknown_is_utc(name: str) -> None:
    assert not time_zones.is_known(name)
    assert SUMMER.astimezone(time_zones.zone_of(name)).utcoffset() == timedelta()


def test_quiet_hours_and_days_follow_an_offset() -> None:
    assert quiet_hours.quiet_for_s(QuietHours(17 * 60, 18 * 60), "GMT+05:30", SUMMER) == 1800
    assert quiet_hours.quiet_for_s(QuietHours(17 * 60, 18 * 60, "+05:30"), "Europe/Berlin", SUMMER) == 1800
    assert quiet_hours.day_bounds("GMT-12", SUMMER) == (SUMMER, SUMMER + timedelta(days=1))


def test_time_zones_are_read_once() -> None:
    assert time_zones.zone_of("Europe/Berlin") is time_zones.zone_of("Europe/Berlin")
    assert time_zones.zone_of("Europe/Berlin") == ZoneInfo("Europe/Berlin")
