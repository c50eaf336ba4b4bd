"""The price finds the target by itself, from wherever it starts, and stays there under noise."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncbeat_server.sync.policy.interval import Price
from syncbeat_server.sync.policy.price_controller import (
    DEFAULT_TARGET,
    Measurements,
    Target,
    TargetKind,
    adjust_price,
    first_price,
)
from syncbeat_server.sync.policy.scope_prior import DEFAULT_PRIOR, Prior

pytestmark = pytest.mark.unit

MEAN, P95 = DEFAULT_TARGET, Target(TargetKind.P95, 30.0)
BUDGET = Target(TargetKind.BUDGET, 1_000_000)


def stale_fleet(price: Price, k: float = 40.0, cap_s: float = 1e9) -> Measurements:
    """A fleet that keeps to the square-root law: its mean staleness goes with 1 / sqrt(price)."""
    mean_s = _mean_s(price, k, cap_s)
    return Measurements(unit_stale_s=mean_s * math.sqrt(price.staleness), capped=float(mean_s >= cap_s / 2))


def _mean_s(price: Price, k: float = 40.0, cap_s: float = 1e9) -> float:
    return min(cap_s / 2, k / math.sqrt(price.staleness))


def hour(price: Price, target: Target, fleet: Callable[[Price], Measurements], minutes: int = 60) -> list[Price]:
    prices = [price]
    for _ in range(minutes):
        prices.append(adjust_price(prices[-1], target, fleet(prices[-1])))
    return prices


def test_price_starts_at_that_of_the_study() -> None:
    assert first_price(MEAN).staleness == pytest.approx(3.2, rel=0.02)
    assert first_price(Target(TargetKind.MEAN, 30.0)).staleness == pytest.approx(0.8, rel=0.02)
    assert first_price(MEAN).lateness == 0.0
    late = first_price(P95)
    assert late.staleness == pytest.approx(0.8, rel=0.02)
    assert 50.0 < late.lateness < 100.0
    assert first_price(BUDGET) == first_price(MEAN)


def test_price_is_lower_where_rates_differ_less() -> None:
    alike = DEFAULT_PRIOR._replace(cold_shape=50.0, hot_per_s=3 * DEFAULT_PRIOR.cold_per_s)
    rate = alike.cold_per_s
    assert first_price(MEAN, alike).staleness == pytest.approx(1 / (2 * rate * 15.0**2) / 0.65, rel=0.15)


@pytest.mark.parametrize("wrong_by", [0.05, 0.5, 2.0, 25.0])
def test_price_meets_a_mean_target_from_anywhere(wrong_by: float) -> None:
    right = (40.0 / 15.0) ** 2
    prices = hour(Price(right * wrong_by), MEAN, stale_fleet, minutes=10)
    assert _mean_s(prices[-1]) == pytest.approx(15.0, rel=0.01)
    ratios = [price.staleness / right for price in prices]
    assert all(min(1, wrong_by) * 0.99 < ratio < max(1, wrong_by) * 1.01 for ratio in ratios)  # nothing swings over


def test_price_meets_a_mean_target_bent_by_the_cap() -> None:
    def bent(price: Price) -> Measurements:  # half of the changes are of scopes that the cap polls
        return Measurements(unit_stale_s=(_mean_s(price) + 12.0) / 2 * math.sqrt(price.staleness))

    price = hour(first_price(MEAN), MEAN, bent)[-1]
    assert (_mean_s(price) + 12.0) / 2 == pytest.approx(15.0, rel=0.01)


def test_price_recovers_from_its_bounds() -> None:
    # At night nothing needs more than the cap; the price does not fall meanwhile, so the morning finds it where it was.
    awake = hour(Price(3.2), MEAN, stale_fleet)[-1]

    def asleep(price: Price) -> Measurements:
        return stale_fleet(price, k=3.0, cap_s=20.0)

    night = hour(awake, MEAN, asleep, minutes=480)[-1]
    assert night.staleness < awake.staleness
    assert _mean_s(hour(night, MEAN, stale_fleet, minutes=10)[-1]) == pytest.approx(15.0, rel=0.01)

    def pinned(price: Price) -> Measurements:
        return Measurements(unit_stale_s=10.0 * math.sqrt(price.staleness), capped=1.0)

    assert hour(awake, MEAN, pinned)[-1] == awake

    def at_the_floor(price: Price) -> Measurements:
        return Measurements(unit_stale_s=20.0 * math.sqrt(price.staleness), floored=1.0)

    assert hour(awake, MEAN, at_the_floor)[-1] == awake


def late_fleet(price: Price) -> Measurements:
    """Scopes of rates that differ, each polled within the limit or not at all, as the price of lateness has it."""
    rates = [math.exp(z / 4) / 3600 for z in range(-10, 11)]
    late = sum(rate for rate in rates if 1 / (price.lateness * 30.0) > rate)
    late *= min(1.0, 2.0 / (1.0 + price.staleness))
    return Measurements(changes=sum(rates) * 1e5, late=late * 1e5)


@pytest.mark.parametrize("lateness", [3.0, 60.0, 1_800.0])
def test_price_meets_a_lateness_target(lateness: float) -> None:
    prices = hour(Price(first_price(P95).staleness, lateness), P95, late_fleet, minutes=120)
    shares = [late_fleet(price).late / late_fleet(price).changes for price in prices[60:]]
    assert sum(shares) / len(shares) == pytest.approx(0.05, abs=0.015)


def test_price_falls_with_nothing_late_and_recovers() -> None:
    def early(price: Price) -> Measurements:
        return Measurements(changes=1_000)

    cheap = hour(first_price(P95), P95, early, minutes=120)[-1]
    assert cheap.staleness < first_price(P95).staleness / 2

    def all_late(price: Price) -> Measurements:
        return Measurements(changes=1_000, late=1_000.0)

    dear = hour(cheap, P95, all_late)
    risen = next(i for i, price in enumerate(dear) if price.staleness == first_price(P95).staleness)
    assert dear[risen].lateness == cheap.lateness
    assert dear[-1].lateness > 10 * cheap.lateness


def test_price_meets_a_budget_from_anywhere() -> None:
    right = 2.5

    def load(price: Price) -> Measurements:
        return Measurements(unit_load=BUDGET.value / 86_400 / math.sqrt(right))

    assert hour(first_price(BUDGET), BUDGET, load)[-1].staleness == pytest.approx(right)


def test_price_meets_a_tiny_budget() -> None:
    right = first_price(BUDGET).staleness / 9_000

    def load(price: Price) -> Measurements:
        return Measurements(unit_load=BUDGET.value / 86_400 / math.sqrt(right))

    assert hour(first_price(BUDGET), BUDGET, load)[-1].staleness == pytest.approx(right)


def test_price_meets_a_budget_bent_by_the_bounds() -> None:
    # With intervals at their bounds requests follow the price less than by its root.
    def requests_a_day(price: Price) -> float:
        return 700_000 * math.pow(price.staleness, 0.3)

    def load(price: Price) -> Measurements:
        return Measurements(unit_load=requests_a_day(price) / 86_400 / math.sqrt(price.staleness))

    assert requests_a_day(hour(first_price(BUDGET), BUDGET, load)[-1]) == pytest.approx(BUDGET.value, rel=0.01)


prices = st.builds(Price, st.floats(1e-6, 1e6), st.floats(0.0, 1e6))
measures = st.builds(
    Measurements,
    st.floats(0.0, 1e9),
    st.floats(0.0, 1e9),
    st.floats(0.0, 1e9),
    st.floats(0.0, 1e9),
    st.floats(0.0, 1.0),
    st.floats(0.0, 1.0),
)


@given(prices, st.sampled_from([MEAN, P95, BUDGET]), measures)
def test_price_is_finite_for_any_measurement(price: Price, target: Target, measured: Measurements) -> None:
    moved = adjust_price(price, target, measured)
    assert math.isfinite(moved.staleness)
    assert moved.staleness > 0.0
    assert math.isfinite(moved.lateness)
    assert moved.lateness >= 0.0
    if target is not P95 or price.staleness <= first_price(P95).staleness:
        assert abs(math.log(moved.staleness / price.staleness)) <= 0.5 + 1e-9


def test_price_ignores_a_nonsense_prior() -> None:
    # As of a day on which all scopes were written in one second.
    nonsense = Prior(1.18e-05, 1.16e-05, 2.0, 0.2, 2.83e-06, 0.2)
    good = first_price(MEAN)
    on_target = Measurements(unit_stale_s=MEAN.value * math.sqrt(good.staleness), changes=100.0)
    assert first_price(MEAN, nonsense).staleness < good.staleness / 1_000
    assert adjust_price(good, MEAN, on_target, nonsense).staleness == pytest.approx(good.staleness)


def test_price_stays_without_measurements() -> None:
    for price, target in ((Price(2.0), MEAN), (Price(0.8, 50.0), P95), (Price(2.0), BUDGET)):
        moved = adjust_price(price, target, Measurements())
        assert moved.staleness == pytest.approx(price.staleness)
        assert moved.lateness == pytest.approx(price.lateness)


def test_price_targets_describe_themselves() -> None:
    assert str(MEAN) == "a mean staleness of 15 s"
    assert str(P95) == "95 of 100 changes seen within 30 s"
    assert str(BUDGET) == "1,000,000 requests a day"
    assert (MEAN.late_s, P95.late_s, BUDGET.late_s) == (60.0, 30.0, 60.0)
    assert Target(TargetKind.MEAN, 300.0).settles_s == 600.0


def test_price_of_any_prior_has_a_start() -> None:
    odd = Prior(1e-7, 1e-1, 1.0, 0.2, 1e-7, 50.0)
    assert math.isfinite(first_price(MEAN, odd).staleness)
