"""Many processes tune one price: nothing they measured is lost or counted twice, and noise moves it little."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from syncbeat_server.sync.policy.price_controller import DEFAULT_TARGET, Target, TargetKind, first_price
from syncbeat_server.sync.policy.price_state import PriceState, Sums, initial_state, next_state
from syncbeat_server.sync.policy.scope_prior import DEFAULT_PRIOR

pytestmark = pytest.mark.unit

T0 = 1_900_000_000.0
MEAN = DEFAULT_TARGET


def minutes(tuned: PriceState, met: Callable[[PriceState], Sums], count: int, step_s: float = 60.0) -> list[PriceState]:
    rows = [tuned]
    for _ in range(count):
        rows.append(next_state(rows[-1], met(rows[-1]), rows[-1].target, DEFAULT_PRIOR, rows[-1].tuned_at + step_s))
    return rows


@pytest.mark.parametrize(("changes", "within"), [(1_000, 0.01), (30, 0.03), (3, 0.08)])
@pytest.mark.parametrize("wrong_by", [0.1, 1.0, 10.0])
def test_price_converges_within_an_hour_despite_noise(changes: int, within: float, wrong_by: float) -> None:
    dice = random.Random(3)
    k = 15.0 * math.sqrt(first_price(MEAN).staleness * wrong_by)

    def noisy(row: PriceState) -> Sums:
        mean_s = k / math.sqrt(row.price.staleness)
        count = sum(dice.random() < 0.5 for _ in range(2 * changes))
        return Sums(changes=count, stale_s=sum(dice.expovariate(1 / mean_s) for _ in range(count)))

    rows = minutes(initial_state(MEAN, DEFAULT_PRIOR, T0), noisy, 360)
    means = [k / math.sqrt(row.price.staleness) for row in rows[60:]]
    average = sum(means) / len(means)
    spread = math.sqrt(sum((mean - average) ** 2 for mean in means) / len(means))
    assert means[0] == pytest.approx(15.0, rel=max(0.02, 4 * within))
    assert average == pytest.approx(15.0, rel=max(0.01, within))
    assert spread / average < within


def test_price_stays_over_a_month_without_changes() -> None:
    quiet = minutes(initial_state(MEAN, DEFAULT_PRIOR, T0), lambda row: Sums(), 30 * 1_440)[-1]
    assert quiet.price.staleness == pytest.approx(first_price(MEAN).staleness)


def test_price_of_a_one_device_app_is_stable() -> None:
    # One change every two hours, by turns as fresh and as old as can be: their mean is on target.
    k, dice = 15.0 * math.sqrt(first_price(MEAN).staleness), random.Random(5)

    def met(row: PriceState) -> Sums:
        if dice.random() > 1 / 120:
            return Sums()
        return Sums(changes=1.0, stale_s=dice.uniform(0.0, 2.0) * k / math.sqrt(row.price.staleness))

    rows = minutes(initial_state(MEAN, DEFAULT_PRIOR, T0), met, 20 * 1_440)
    moved = [math.log(row.price.staleness / first_price(MEAN).staleness) for row in rows]
    assert max(map(abs, moved)) < 0.6


def test_price_sums_accumulate_until_due() -> None:
    row = initial_state(MEAN, DEFAULT_PRIOR, T0)
    row = next_state(row, Sums(changes=10.0, stale_s=600.0), MEAN, DEFAULT_PRIOR, T0 + 20)
    assert (row.price, row.since.changes) == (first_price(MEAN), 10.0)
    row = next_state(row, Sums(changes=30.0, stale_s=200.0, late=4.0), MEAN, DEFAULT_PRIOR, T0 + 60)
    assert row.price.staleness > first_price(MEAN).staleness
    assert (row.tuned_at, row.since) == (T0 + 60, Sums())
    assert (row.mean_s, row.late_share) == (20.0, 0.1)
    quiet = next_state(row, Sums(), MEAN, DEFAULT_PRIOR, T0 + 120)
    assert (quiet.mean_s, quiet.tuned_at) == (20.0, T0 + 120)


def test_price_of_a_slow_target_is_measured_longer() -> None:
    slow = Target(TargetKind.MEAN, 600.0)
    row = initial_state(slow, DEFAULT_PRIOR, T0)
    for minute in range(1, 18):
        row = next_state(row, Sums(changes=1.0, stale_s=60.0), slow, DEFAULT_PRIOR, T0 + 60 * minute)
    assert row.price == first_price(slow)
    row = next_state(row, Sums(), slow, DEFAULT_PRIOR, T0 + 1_200)
    assert row.price.staleness < first_price(slow).staleness


def test_price_budget_follows_the_day() -> None:
    # Three times the requests by day as by night: the price that meets the day's budget moves far less than they do.
    budget = Target(TargetKind.BUDGET, 1_000_000.0)

    def met(row: PriceState) -> Sums:
        hour = (row.tuned_at - T0) / 3_600 % 24
        return Sums(requests=(900.0 if hour < 12 else 300.0) * math.sqrt(row.price.staleness))

    rows = minutes(initial_state(budget, DEFAULT_PRIOR, T0), met, 6 * 1_440)[4 * 1_440 :]
    spent = sum(met(row).requests for row in rows) / 2
    assert spent == pytest.approx(1_000_000, rel=0.05)
    prices = [row.price.staleness for row in rows]
    assert max(prices) / min(prices) < 3.0


def test_price_idle_time_counts_at_most_an_hour() -> None:
    budget = Target(TargetKind.BUDGET, 1_000_000.0)
    row = minutes(initial_state(budget, DEFAULT_PRIOR, T0), lambda row: Sums(requests=700.0), 60)[-1]
    later = next_state(row, Sums(requests=700.0), budget, DEFAULT_PRIOR, row.tuned_at + 30 * 86_400)
    assert later.unit_s == pytest.approx(row.unit_s + 3_600, rel=0.05)


def test_price_of_another_target_starts_from_known_load() -> None:
    row = minutes(initial_state(MEAN, DEFAULT_PRIOR, T0), lambda row: Sums(changes=9, stale_s=9.0, requests=700.0), 60)[
        -1
    ]
    budget = Target(TargetKind.BUDGET, 1_000_000.0)
    fresh = next_state(row, Sums(), budget, DEFAULT_PRIOR, row.tuned_at + 10)
    assert (fresh.price, fresh.target) == (first_price(budget), budget)
    assert fresh.unit_requests == row.unit_requests
