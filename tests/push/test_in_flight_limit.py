"""The number of attempts under way follows the provider's latency, within the rate."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncbeat_server.push.policy.in_flight_limit import InFlightLimit

pytestmark = pytest.mark.unit


def limit_after(*latencies: tuple[float, float], most: int = 1_000, rate_per_s: float = 10_000.0) -> InFlightLimit:
    limit = InFlightLimit(most, rate_per_s)
    for now, seconds in latencies:
        limit.record_latency(now, seconds)
    return limit


def test_in_flight_starts_with_a_claim_and_never_passes_the_setting() -> None:
    assert limit_after().current() == 200
    assert limit_after(most=50).current() == 50
    assert limit_after((1.0, 2.0)).current() == 1_000


@pytest.mark.parametrize(("seconds", "places"), [(0.001, 200), (0.01, 200), (0.02, 400), (0.05, 1_000), (0.1, 2_000)])
def test_in_flight_is_twice_rate_times_latency(seconds: float, places: int) -> None:
    assert limit_after((1.0, seconds), most=2_000).current() == places


def test_in_flight_goes_by_the_least_latency_of_the_last_half_minute() -> None:
    limit = limit_after((100.0, 0.05), (101.0, 0.02), (102.0, 0.5))
    assert limit.current() == 400
    limit.record_latency(131.0, 0.04)
    assert limit.current() == 400
    limit.record_latency(162.0, 0.03)
    assert limit.current() == 600


def test_in_flight_shrinks_with_the_share_of_a_throttled_app() -> None:
    assert limit_after((1.0, 0.05)).current(0.5) == 500


@given(st.lists(st.floats(0.0, 60.0), max_size=20), st.integers(1, 2_000), st.floats(0.02, 1.0))
def test_in_flight_is_bounded(latencies: list[float], most: int, share: float) -> None:
    limit = limit_after(*((float(now), seconds) for now, seconds in enumerate(latencies)), most=most)
    assert min(most, 200) <= limit.current(share) <= most
