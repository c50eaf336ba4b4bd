"""The one decision, and rates on clocks that jump: never more than a burst at once, never locked out."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncbeat_server.ratelimit.model import Rate
from syncbeat_server.ratelimit.policy.decision import Bound, decide, refusal
from syncbeat_server.ratelimit.policy.gcra import most_used, take
from tests.support.shared_rates import settle

pytestmark = pytest.mark.unit

rates = st.builds(Rate, st.floats(0.01, 10_000.0), st.integers(1, 5_000))
steps = st.lists(st.floats(0.0, 30.0), min_size=1, max_size=60)
jumps = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40)


def test_limit_decision_tells_what_remains_and_when_it_is_reset() -> None:
    bound = Bound(10.0, per_second=2.0)
    assert decide(bound, 4.0) == (True, 10, 5, 0.0, 2.5)
    assert decide(bound, 9.5) == (False, 10, 0, 0.25, 4.75)
    assert decide(Bound(3.0, retry_s=30.0), 3.0) == (False, 3, 0, 30.0, 30.0)
    assert decide(Bound(math.inf), 1e9).allowed


def test_limit_decision_of_a_rate_of_zero_refuses_all() -> None:
    decision, drained_at = take(Rate(0.0, 10), 5.0, 7.0)
    assert (decision.allowed, decision.remaining, decision.wait_s, drained_at) == (False, 0, 3_600.0, 5.0)


def test_limit_refusal_has_retry_and_quota_metadata() -> None:
    error = refusal("no", decide(Bound(10.0, per_second=0.5), 10.0), subject="principal")
    assert error.retry_after_s == 2.0
    assert error.metadata == {"limit": "10", "remaining": "0", "reset": "20", "subject": "principal"}


@given(rates, steps)
def test_gcra_admits_at_most_burst_and_rate_in_every_window(rate: Rate, passed: list[float]) -> None:
    now, drained_at, admitted = 1e9, 0.0, list[float]()
    for seconds in passed:
        now += seconds
        decision, drained_at = take(rate, drained_at, now)
        if decision.allowed:
            admitted.append(now)
    for first, start in enumerate(admitted):
        for last in range(first, len(admitted)):
            most = rate.burst + (admitted[last] - start) * rate.per_second
            assert last - first + 1 <= most + 0.01


@given(rates, st.floats(0.0, 1e6))
def test_gcra_admits_after_the_told_wait(rate: Rate, now: float) -> None:
    drained_at, decision = 0.0, decide(Bound(1.0), 0.0)
    for _ in range(rate.burst + 1):
        decision, drained_at = take(rate, drained_at, now)
    assert not decision.allowed
    assert take(rate, drained_at, now + decision.wait_s + 1e-3 / rate.per_second)[0].allowed


@given(rates, jumps)
def test_gcra_is_not_locked_out_by_clock_jumps(rate: Rate, moves: list[float]) -> None:
    """Wherever the clock jumps, the wait told is that of a bucket just over its burst, and at its end there is room."""
    now, drained_at = 2e6, 0.0
    for move in moves:
        now = max(0.0, now + move)
        decision, drained_at = take(rate, drained_at, now)
        if not decision.allowed:
            assert decision.wait_s <= (most_used(rate) + 1.0 - rate.burst) / rate.per_second + 1e-3
            assert take(rate, drained_at, now + decision.wait_s + 1e-3 / rate.per_second)[0].allowed


@given(rates, jumps)
def test_gcra_gives_at_most_one_burst_for_a_clock_jump(rate: Rate, moves: list[float]) -> None:
    now, drained_at, admitted = 2e6, 0.0, 0
    for move in moves:
        now = max(0.0, now + move)
        for _ in range(3):
            decision, drained_at = take(rate, drained_at, now)
            admitted += decision.allowed
    assert admitted <= (len(moves) + 1) * rate.burst


@given(
    rates,
    st.lists(st.tuples(st.integers(-500, 500), st.integers(1, 50), st.integers(0, 500)), min_size=1, max_size=30),
)
def test_gcra_settlement_never_grants_beyond_the_burst(rate: Rate, asks: list[tuple[int, int, int]]) -> None:
    used = 0.0
    for charged, least, wanted in asks:
        before = max(0.0, min(most_used(rate), used + charged))
        granted, used = settle(rate, used, charged, least, wanted)
        assert granted == int(granted) >= 0
        assert not granted or before + granted <= rate.burst + 1e-3
        assert 0.0 <= used <= most_used(rate)


def test_gcra_cost_above_the_burst_takes_all_of_it() -> None:
    rate = Rate(1.0, 10)
    decision, drained_at = take(rate, 0.0, 0.0, 1_000.0)
    assert (decision.allowed, drained_at) == (True, 10.0)
    assert not take(rate, drained_at, 5.0, 1_000.0)[0].allowed
