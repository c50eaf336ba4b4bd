"""The fit finds the parameters that a fleet was made with, and keeps its hands off where it cannot know."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import NamedTuple

import pytest

from syncbeat_server.sync.policy.fit_samples import History
from syncbeat_server.sync.policy.scope_prior import DEFAULT_PRIOR, Prior
from syncbeat_server.sync.tuning.prior_fit import LEAST_CHANGES, LEAST_SCOPES, fit

pytestmark = pytest.mark.unit

DAY_S = 86_400.0
HOUR_S = 3600.0
START_S = 1_900_000_000.0


class Fleet(NamedTuple):
    """Median rates an hour, the spread of their logarithms, minutes from cold to hot and from hot to cold."""

    hot: float
    hot_sd: float
    cold: float
    cold_sd: float
    start_min: float
    end_min: float


COUPLES = Fleet(20.0, 0.6, 0.4, 0.6, 349.0, 11.8)
BURSTS = Fleet(120.0, 0.3, 0.1, 0.3, 349.0, 3.0)


def histories(fleet: Fleet, scopes: int, seed: int = 1) -> list[History]:
    """A day of each scope."""
    dice = random.Random(seed)
    return [_history(fleet, dice) for _ in range(scopes)]


def _history(fleet: Fleet, dice: random.Random) -> History:
    rates = {
        True: fleet.hot / HOUR_S * math.exp(dice.gauss(0.0, fleet.hot_sd)),
        False: fleet.cold / HOUR_S * math.exp(dice.gauss(0.0, fleet.cold_sd)),
    }
    leaves = {True: 1 / (60 * fleet.end_min), False: 1 / (60 * fleet.start_min)}
    hot = dice.random() < leaves[False] / (leaves[False] + leaves[True])
    at, end, changes = START_S, START_S + DAY_S, []
    while at < end:
        until = min(end, at + dice.expovariate(leaves[hot]))
        change = at + dice.expovariate(rates[hot])
        while change < until:
            changes.append(change)
            change += dice.expovariate(rates[hot])
        at, hot = until, not hot
    return History(START_S, end, changes)


@pytest.mark.parametrize("fleet", [COUPLES, BURSTS])
def test_prior_fit_recovers_the_parameters(fleet: Fleet) -> None:
    found = fit(histories(fleet, 90), DEFAULT_PRIOR)
    assert found is not None
    prior = found.prior
    assert (found.scopes, found.changes) == (90, sum(len(one.changes) for one in histories(fleet, 90)))
    assert prior.hot_per_s * HOUR_S == pytest.approx(fleet.hot * math.exp(fleet.hot_sd**2 / 2), rel=0.25)
    assert prior.cold_per_s * HOUR_S == pytest.approx(fleet.cold * math.exp(fleet.cold_sd**2 / 2), rel=0.25)
    assert 1 / prior.start_per_s / 60 == pytest.approx(fleet.start_min, rel=0.25)
    assert 1 / prior.end_per_s / 60 == pytest.approx(fleet.end_min, rel=0.2)
    spread = 1 / math.expm1(fleet.cold_sd**2)
    assert spread / 2 < prior.cold_shape < spread * 2


def test_prior_fit_of_identical_scopes() -> None:
    found = fit(histories(Fleet(1.8, 0.0, 1.8, 0.0, 300.0, 300.0), 60), DEFAULT_PRIOR)
    assert found is not None
    assert found.prior.cold_per_s * HOUR_S == pytest.approx(1.8, rel=0.1)
    assert found.prior.cold_shape > 10.0
    assert found.prior.start_per_s / found.prior.end_per_s < 0.1  # hardly ever hot


def test_prior_fit_counts_quiet_scopes() -> None:
    busy = histories(COUPLES, 30)
    silent = [History(START_S, START_S + DAY_S, ()) for _ in range(30)]
    alone, beside = fit(busy, DEFAULT_PRIOR), fit([*busy, *silent], DEFAULT_PRIOR)
    assert alone is not None
    assert beside is not None
    assert _mean_rate(beside.prior) < 0.7 * _mean_rate(alone.prior)


def _mean_rate(prior: Prior) -> float:
    hot = prior.start_per_s / (prior.start_per_s + prior.end_per_s)
    return hot * prior.hot_per_s + (1 - hot) * prior.cold_per_s


def test_prior_fit_needs_enough_evidence() -> None:
    enough = histories(COUPLES, 40)
    assert fit([], DEFAULT_PRIOR) is None
    assert fit(enough[: LEAST_SCOPES - 1], DEFAULT_PRIOR) is None
    scarce = [one._replace(changes=one.changes[:4]) for one in enough]
    assert sum(len(one.changes) for one in scarce) < LEAST_CHANGES
    assert fit(scarce, DEFAULT_PRIOR) is None
    hour = [History(START_S, START_S + HOUR_S, [START_S + change % 3000 for change in range(20)]) for _ in range(40)]
    assert fit(hour, DEFAULT_PRIOR) is None


def rounds(count: int) -> Callable[[], bool]:
    """Out of time after so many looks."""
    looks = iter(range(count))
    return lambda: next(looks, None) is None


def test_prior_fit_stops_when_told() -> None:
    hurried = fit(histories(COUPLES, 40), DEFAULT_PRIOR, rounds(3))
    assert hurried is not None
    assert hurried.prior != (fit(histories(COUPLES, 40), DEFAULT_PRIOR, rounds(30)) or hurried).prior


def test_prior_fit_is_sane_for_any_input() -> None:
    burst = History(START_S, START_S + DAY_S, [START_S + 1.0] * 5_000)  # one instant, and more than is looked at
    wild = [burst] * 2 + [History(START_S, START_S + DAY_S, ())] * 20
    found = fit(wild, DEFAULT_PRIOR, rounds(40))
    assert found is not None
    assert all(math.isfinite(value) and value > 0 for value in found.prior)
    assert found.prior.hot_per_s >= 2 * found.prior.cold_per_s
