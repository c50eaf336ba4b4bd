"""Redis's state is said once, hourly, when its cause changes and when it ends: no flood, and no silence."""

from __future__ import annotations

import io
import logging

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError

from syncbeat_server.ops.log_rate_limit import RateLimitedHandler
from syncbeat_server.storage.redis.failure_causes import SENTENCES, Cause, cause_of
from syncbeat_server.storage.redis.outage_log import RedisHealth, Refusal
from tests.support.fake_clock import FakeClock

pytestmark = pytest.mark.unit

FULL, LOADING, UNHEARD = (Refusal(cause, "SET") for cause in (Cause.FULL, Cause.LOADING, Cause.UNHEARD))


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO)
    return caplog


def causes(told: pytest.LogCaptureFixture) -> list[str]:
    return [f"{record.levelname} {vars(record).get('cause') or vars(record)['ended']}" for record in told.records]


async def test_redis_health_is_logged_once_hourly_and_at_its_end(told: pytest.LogCaptureFixture) -> None:
    clock = FakeClock()
    health = RedisHealth(clock)
    for _ in range(3 * 1_800):  # every two seconds for three hours
        health.record_check([FULL])
        await clock.advance(2.0)
    assert causes(told) == ["WARNING full"] * 3
    assert [vars(record)["for_s"] for record in told.records] == [0, 3_600, 7_200]
    health.record_check([])
    assert causes(told)[3:] == ["INFO full"]


async def test_redis_health_end_is_never_counted_away() -> None:
    written = io.StringIO()
    handler = RateLimitedHandler(written, FakeClock())
    logger = logging.getLogger("syncbeat_server.storage.redis.outage_log")
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        for _ in range(2):  # two connections' health, in one window
            health = RedisHealth(FakeClock())
            health.record_check([FULL])
            health.record_check([])
        assert written.getvalue().count("redis can be used in full again") == 2
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)
        handler.close()


async def test_redis_health_names_each_cause_and_no_flapping(told: pytest.LogCaptureFixture) -> None:
    clock = FakeClock()
    health = RedisHealth(clock)
    for refusals in ([FULL], [LOADING], [FULL], [LOADING], [FULL]):
        health.record_check(refusals)
        await clock.advance(2.0)
    assert causes(told) == ["WARNING full", "WARNING loading"]
    for _ in range(100):  # it comes and goes
        health.record_check([])
        health.record_check([FULL])
        await clock.advance(2.0)
    assert len(causes(told)) <= 2 + 2 * (200 / 60 + 1)


def test_redis_health_is_good_only_without_faults_and_failed_calls() -> None:
    health = RedisHealth(FakeClock())
    assert not health.check_requested.is_set()
    health.record_failure(RedisConnectionError("Connection closed by server."))
    assert health.check_requested.is_set()
    health.record_check([])
    assert (health.cause, health.check_requested.is_set()) == (Cause.CLOSED, False)
    health.record_check([])
    assert health.is_up
    assert health.errors[Cause.CLOSED] == 1


def test_redis_health_reconnects_once_there_is_a_primary() -> None:
    health = RedisHealth(FakeClock())
    health.record_failure(ReadOnlyError("You can't write against a read only replica."))
    assert not health.record_check([Refusal(Cause.READ_ONLY, "SET")])  # nothing better to connect to
    assert health.record_check([])
    assert not health.record_check([])
    assert health.record_check([UNHEARD])


def test_redis_health_causes_have_a_sentence_each() -> None:
    assert set(SENTENCES) == set(Cause)
    assert cause_of(ValueError("an answer of another kind")) is Cause.FOREIGN
