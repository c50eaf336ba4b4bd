"""Tests how fast an app may send after what its provider said, and how many at once."""

from __future__ import annotations

from dataclasses import replace

import pytest

from syncbeat_server.push.delivery.flow_control import Gate
from syncbeat_server.push.model import Blame, Outcome, Reason, Verdict
from syncbeat_server.push.policy.throttle import Throttle
from syncbeat_server.resilience.breaker import BreakerState
from tests.support.build import make_breaker
from tests.support.fake_clock import FakeClock

pytestmark = pytest.mark.unit

SENT = Outcome(Verdict.SENT)
THROTTLED = Outcome(Verdict.RETRY, Reason.THROTTLED)
UNAVAILABLE = Outcome(Verdict.RETRY, Reason.UNAVAILABLE)
DEAD = Outcome(Verdict.DEAD_TOKEN, Reason.UNREGISTERED)


def test_rate_limit_halves_on_429_and_recovers_in_a_minute() -> None:
    throttle = Throttle()
    throttle.record_answer(10.0, throttled=False)
    for moment in (10.0, 10.1, 14.9):
        throttle.record_answer(moment, throttled=True)
    assert throttle.rate_share(10.0) == 0.5, "what was in flight belongs to the same event"
    throttle.record_answer(15.0, throttled=True)
    assert throttle.rate_share(15.0) == pytest.approx((0.5 + 5 / 60) / 2)
    assert throttle.rate_share(75.0) == 1.0


def test_rate_limit_never_falls_to_zero() -> None:
    throttle = Throttle()
    for moment in range(0, 600, 5):
        throttle.record_answer(float(moment), throttled=True)
        assert throttle.rate_share(float(moment)) >= 1 / 64


@pytest.mark.parametrize(("throttled", "paused"), [(2, 0.0), (3, 60.0)])
def test_rate_limit_pauses_above_a_tenth_throttled_in_ten_seconds(throttled: int, paused: float) -> None:
    throttle = Throttle()
    for number in range(25):
        throttle.record_answer(100.0 + number / 10, throttled=number >= 25 - throttled)
    assert throttle.paused_for_s(102.4) == pytest.approx(paused)


def test_rate_limit_window_is_ten_seconds() -> None:
    throttle = Throttle()
    for number in range(30):
        throttle.record_answer(number / 100, throttled=number < 3)
    assert throttle.paused_for_s(1.0) == 0.0, "3 of 30 are no more than a tenth"
    throttle.record_answer(10.5, throttled=True)
    assert throttle.paused_for_s(10.5) == 0.0, "one of one is too few to judge by"


def test_rate_limit_pause_follows_retry_after() -> None:
    throttle = Throttle()
    for _ in range(20):
        throttle.record_answer(0.0, throttled=True, retry_after_s=300.0)
    assert throttle.paused_for_s(0.0) == 300.0


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def gate(clock: FakeClock) -> Gate:
    return Gate(10, 10_000.0, make_breaker(clock), clock)


async def send(gate: Gate, outcome: Outcome, platform: str = "ANDROID") -> None:
    permit = await gate.enter(platform)
    assert permit is not None
    gate.record_outcome(permit, outcome, platform)


def test_in_flight_limit_is_per_app(gate: Gate) -> None:
    gate.in_flight = 8
    assert gate.free_slots(has_fallback=False) == 2
    gate.in_flight = 12
    assert gate.free_slots(has_fallback=True) == 0


async def test_in_flight_limit_follows_the_time_that_attempts_take(clock: FakeClock) -> None:
    gate = Gate(2_000, 10_000.0, make_breaker(clock), clock)
    assert gate.max_in_flight == 200
    admission = await gate.enter("ANDROID")
    assert admission is not None
    await clock.advance(0.05)
    gate.record_outcome(admission, SENT, "ANDROID")
    assert gate.max_in_flight == 1_000


async def test_breaker_spares_a_down_provider_unless_there_is_a_fallback(gate: Gate, clock: FakeClock) -> None:
    for _ in range(5):
        await send(gate, UNAVAILABLE)
    assert (gate.free_slots(has_fallback=False), gate.free_slots(has_fallback=True), gate.closed_for_s()) == (
        0,
        10,
        60.0,
    )
    assert await gate.enter("ANDROID") is None
    await clock.advance(60)
    assert (gate.breaker, gate.free_slots(has_fallback=False)) == (BreakerState.HALF_OPEN, 3)


async def test_breaker_ignores_dead_tokens_and_bad_messages(gate: Gate) -> None:
    for _ in range(10):
        await send(gate, DEAD)
        await send(gate, Outcome(Verdict.REJECTED, Reason.REJECTED))
    assert gate.breaker is BreakerState.CLOSED


CONFIG = Outcome(Verdict.RETRY, Reason.PROVIDER_CONFIG, blame=Blame.APP)


async def test_breaker_opens_after_five_misconfigurations_in_a_row(gate: Gate) -> None:
    for _ in range(4):
        await send(gate, CONFIG)
    assert (gate.free_slots(has_fallback=False), gate.closed_for_s()) == (10, 0.0)
    await send(gate, CONFIG)
    assert (gate.free_slots(has_fallback=False), gate.closed_for_s(), gate.breaker) == (0, 60.0, BreakerState.OPEN)


async def test_breaker_ignores_misconfiguration_of_some(gate: Gate) -> None:
    for _ in range(100):
        for outcome in (CONFIG, CONFIG, SENT):
            await send(gate, outcome)
    assert (gate.free_slots(has_fallback=False), gate.closed_for_s()) == (10, 0.0)


async def test_access_token_unavailable_pauses_the_app(gate: Gate, clock: FakeClock) -> None:
    none = Outcome(Verdict.RETRY, Reason.PROVIDER_CONFIG, blame=Blame.ACCESS)
    for _ in range(50):
        await send(gate, none)
    assert (gate.closed_for_s(), gate.breaker) == (0.0, BreakerState.CLOSED), "one failure, of which many heard"
    await send(gate, replace(none, retry_after_s=10.0))
    assert (await gate.enter("WEB"), gate.closed_for_s()) == (None, 10.0)
    await clock.advance(10)
    await send(gate, SENT)


IPHONES = Outcome(Verdict.RETRY, Reason.PROVIDER_CONFIG, blame=Blame.PLATFORM)


async def test_apns_credential_refusal_stops_ios_only(gate: Gate, clock: FakeClock) -> None:
    for _ in range(4):
        await send(gate, IPHONES, "IOS")
        await send(gate, SENT, "ANDROID")
    assert gate.closed_for_s("IOS") == 0.0
    await send(gate, IPHONES, "IOS")
    assert (await gate.enter("IOS"), gate.closed_for_s("IOS")) == (None, 60.0)
    await send(gate, SENT, "ANDROID")
    await send(gate, SENT, "WEB")
    assert (gate.closed_for_s("ANDROID"), gate.closed_for_s(), gate.is_broken) == (0.0, 0.0, False)
    await clock.advance(60)
    await send(gate, IPHONES, "IOS")
    assert gate.closed_for_s("IOS") == 60.0, "still wrong: one is enough to see it"
    await clock.advance(60)
    await send(gate, SENT, "IOS")
    await send(gate, IPHONES, "IOS")
    assert gate.closed_for_s("IOS") == 0.0


async def test_rate_limit_throttling_halves_the_grant(gate: Gate) -> None:
    assert gate.rate_share == 1.0
    await send(gate, SENT)
    await send(gate, THROTTLED)
    assert (gate.rate_share, gate.free_slots(has_fallback=False)) == (0.5, 10)
