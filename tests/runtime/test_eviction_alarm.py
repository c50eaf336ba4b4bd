"""A cache too small for its working set says so, once an hour; one that only forgets what is old does not."""

from __future__ import annotations

import logging

import pytest

from syncbeat_server.runtime.eviction_alarm import EvictionAlarm
from tests.support.fake_clock import FakeClock

pytestmark = pytest.mark.unit


def warnings(caplog: pytest.LogCaptureFixture) -> int:
    return sum(record.levelno == logging.WARNING for record in caplog.records)


async def test_eviction_alarm_warns_once_an_hour(caplog: pytest.LogCaptureFixture) -> None:
    clock = FakeClock()
    alarm = EvictionAlarm(clock, "views of devices", 100)
    for _ in range(5):
        alarm.record(is_valid=True)
    assert warnings(caplog) == 0
    for _ in range(20):
        alarm.record(is_valid=True)
    assert warnings(caplog) == 1
    assert "views of devices" in caplog.text
    await clock.advance(3600)
    for _ in range(20):
        alarm.record(is_valid=True)
    assert warnings(caplog) == 2
    assert alarm.evictions == 45


async def test_eviction_alarm_ignores_the_expired_and_the_few(caplog: pytest.LogCaptureFixture) -> None:
    clock = FakeClock()
    alarm = EvictionAlarm(clock, "views of devices", 100)
    for _ in range(1_000):
        alarm.record(is_valid=False)
    for _ in range(10):
        for _ in range(5):
            alarm.record(is_valid=True)
        await clock.advance(61)
    assert warnings(caplog) == 0
    assert alarm.evictions == 1_050
