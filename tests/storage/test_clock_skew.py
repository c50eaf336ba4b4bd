"""Clocks that differ: told once, and no delivery goes by the wrong one."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta

import pytest

from syncbeat_server.directory.model import Platform, Preferences, QuietHours, Registration
from syncbeat_server.ops.metrics import Metrics
from syncbeat_server.storage.postgres.clock_skew import ClockSkew
from syncbeat_server.storage.postgres.database import Database
from tests.support.build import APP, make_directory, make_worker
from tests.support.databases import DatabaseUrls, run_sql
from tests.support.doubles import ScriptedProvider
from tests.support.fake_clock import START, FakeClock
from tests.support.seed import accept, message
from tests.support.workers import running, until_shown

pytestmark = pytest.mark.store


async def set_database(urls: DatabaseUrls, moment: datetime) -> None:
    await run_sql(urls.owner_url, f"UPDATE test_clock SET at = '{moment.isoformat()}'")


@pytest.mark.parametrize("ahead_s", [40.0, -40.0])
async def test_clock_skew_is_logged_once_and_again_after_recovery(
    database: Database, database_urls: DatabaseUrls, caplog: pytest.LogCaptureFixture, ahead_s: float
) -> None:
    caplog.set_level(logging.INFO, "syncbeat_server.storage.postgres.clock_skew")
    clock, metrics = FakeClock(), Metrics()
    skew = ClockSkew(database, clock, metrics.storage.clock_skew)
    for off_s, warnings in ((0.0, 0), (4.0, 0), (ahead_s, 1), (ahead_s, 1), (0.0, 1), (ahead_s, 2)):
        await set_database(database_urls, clock.now() - timedelta(seconds=off_s))
        assert await skew.measure() == off_s
        assert metrics.registry.get_sample_value("syncbeat_clock_skew_seconds") == off_s
        assert sum(record.levelno == logging.WARNING for record in caplog.records) == warnings


class SlowClock(FakeClock):
    """A clock on which each look at the elapsed time comes `trip_s` later."""

    trip_s = 0.0

    def monotonic(self) -> float:
        self._elapsed_s += self.trip_s
        return self._elapsed_s


@pytest.mark.parametrize(("trip_s", "found"), [(1.0, 0.0), (3.0, None)])
async def test_clock_skew_excludes_query_time(
    database: Database, database_urls: DatabaseUrls, trip_s: float, found: float | None
) -> None:
    clock = SlowClock()
    clock.trip_s = trip_s
    # The question was answered halfway.
    await set_database(database_urls, START + timedelta(seconds=trip_s / 2))
    assert await ClockSkew(database, clock, lambda seconds: None).measure() == found


async def test_clock_skew_of_the_worker_does_not_shift_quiet_hours(
    database: Database, database_urls: DatabaseUrls
) -> None:
    clock = FakeClock()  # at 12:00, in the quiet hours
    await set_database(database_urls, datetime(2030, 1, 1, 11, tzinfo=UTC))
    registration = Registration(APP, "ann", "phone", Platform.ANDROID, "token", "UTC", "")
    await make_directory(database).register(registration, "test", by_user=False)
    wanted = Preferences(quiet_hours=QuietHours(11 * 60 + 30, 13 * 60, ""))
    await make_directory(database).set_preferences(APP, "ann", wanted, by_user=False)
    sent = message()
    await accept(database, sent)
    async with running(make_worker(database, clock, ScriptedProvider())):
        await until_shown(database, "ann SENT", of=sent, moving=clock)
