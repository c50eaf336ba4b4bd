"""Rounds of two revisions: what they say, when they end, and in which order they are made."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import count
from math import exp

import pytest

from bench import against
from bench.against import Plan, compare, one_after_the_other
from bench.figure import Better
from bench.measurement import Measurement, MeasurementFailed
from bench.ratios import Change, Verdict, classify, confidence_interval, estimate_change, has_enough_rounds

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("better", list(Better))
def test_change_sign_is_minus_for_worse_either_way(better: Better) -> None:
    pairs = [(105.0 + number / 10, 100.0 + number / 10) for number in range(10)]
    found = estimate_change(pairs, better)
    assert found is not None
    assert found.worst <= found.middle <= found.best
    expected = 5.0 if better is Better.MORE else -5.0
    assert found.middle == pytest.approx(expected, abs=0.1)
    assert found.width < 0.1


@pytest.mark.parametrize("pairs", [[(1.0, 1.0)] * 5, [], [(0.0, 1.0)] * 10, [(1.0, -1.0)] * 10])
def test_confidence_interval_needs_enough_rounds_above_zero(pairs: list[tuple[float, float]]) -> None:
    assert estimate_change(pairs, Better.MORE) is None
    assert classify(estimate_change(pairs, Better.MORE)) is Verdict.UNDECIDED


def test_confidence_interval_is_that_of_the_signed_rank_test() -> None:
    # Of ten values 9 means of pairs are outside at 95.1 %, 8 at 96.3 % (Hollander, Wolfe, Chicken: table A.4).
    values = [float(1 << number) for number in range(10)]
    means = sorted((one + other) / 2 for place, one in enumerate(values) for other in values[place:])
    low, middle, high = confidence_interval(values) or (0.0, 0.0, 0.0)
    assert (low, middle, high) == (means[7], means[27], means[-8])


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (Change(-1.9, -0.1, 1.9), Verdict.NOT_WORSE),
        (Change(-4.9, -2.9, -1.0), Verdict.NOT_WORSE),
        (Change(-5.0, -2.9, -1.0), Verdict.UNDECIDED),
        (Change(-5.0, -3.0, -1.0), Verdict.WORSE),
        (Change(-9.0, -3.5, 2.0), Verdict.UNDECIDED),
        (Change(-30.0, -20.0, -10.0), Verdict.WORSE),
        (Change(10.0, 20.0, 30.0), Verdict.NOT_WORSE),
        (Change(-12.0, 1.0, 14.0), Verdict.UNDECIDED),
        (None, Verdict.UNDECIDED),
    ],
)
def test_verdict_is_not_worse_above_minus_three_with_an_end_above_minus_five(
    found: Change | None, verdict: Verdict
) -> None:
    assert classify(found) is verdict


@pytest.mark.parametrize(
    ("rounds", "width", "expected"),
    [(9, 0.1, False), (10, 4.0, True), (10, 4.1, False), (59, 4.1, False), (60, 9.0, True), (60, None, True)],
)
def test_rounds_end_when_ten_are_narrow_or_sixty_are_done(rounds: int, width: float | None, expected: bool) -> None:
    assert has_enough_rounds(rounds, None if width is None else Change(-width / 2, 0.0, width / 2)) is expected


@pytest.mark.parametrize(
    "noise",
    [
        lambda chance: chance.gauss(0, 0.02),
        lambda chance: chance.gauss(0, 0.05),
        lambda chance: chance.gauss(0, 0.3 if chance.random() < 0.15 else 0.03),
    ],
    ids=["calm", "busy", "outliers"],
)
def test_confidence_interval_covers_95_percent_under_early_stopping(
    noise: Callable[[random.Random], float],
) -> None:
    chance, tries, covered = random.Random(20), 300, 0
    for _ in range(tries):
        values: list[float] = []
        found = None
        while not has_enough_rounds(len(values), found):
            values.append(noise(chance))
            found = estimate_change([(exp(one), 1.0) for one in values], Better.MORE) if len(values) >= 10 else None
        assert found is not None
        covered += found.worst <= 0 <= found.best
    # Of 300 tries at 95 %, four standard deviations are 15.
    assert 270 <= covered <= 299


@pytest.mark.parametrize(("slower", "verdict"), [(0.0, Verdict.NOT_WORSE), (0.06, Verdict.WORSE)])
def test_slowdown_of_six_percent_is_found_beside_outliers(slower: float, verdict: Verdict) -> None:
    chance = random.Random(4)

    def measured(factor: float) -> Measurement:
        spoiled = 2.0 if chance.random() < 0.1 else 1.0
        return Measurement(100 * factor * spoiled * exp(chance.gauss(0, 0.015)), 50.0, Better.LESS)

    compared = compare("made", one_after_the_other(lambda: measured(1 + slower), lambda: measured(1)), Plan(seed=1))
    assert compared.verdict is verdict
    assert compared.change is not None
    told = compared.as_line()
    assert told["interval_pct"][0] <= told["change_pct"] <= told["interval_pct"][1]
    assert told["ratio"] == pytest.approx(1 - told["change_pct"] / 100, abs=0.001)
    assert (told["cpu_change_pct"], told["better"]) == (0.0, "less")


def test_round_order_is_drawn_by_the_seed() -> None:
    def orders(seed: int) -> str:
        made: list[str] = []

        def side(name: str) -> Callable[[], Measurement]:
            def measured() -> Measurement:
                made.append(name)
                return Measurement(1.0, None, Better.MORE)

            return measured

        compare("made", one_after_the_other(side("a"), side("b")), Plan(seed))
        return "".join(made)

    assert orders(1) == orders(1)
    assert len({orders(seed) for seed in range(5)}) == 5
    rounds = [orders(1)[place : place + 2] for place in range(0, 20, 2)]
    assert set(rounds) == {"ab", "ba"}


def test_time_limit_ends_a_figure_judged_by_its_rounds() -> None:
    now = count(step=60)
    chance = random.Random(1)
    compared = compare(
        "made",
        one_after_the_other(
            lambda: Measurement(chance.uniform(1, 9), None, Better.MORE),
            lambda: Measurement(chance.uniform(1, 9), None, Better.MORE),
        ),
        Plan(seed=1, minutes=15, clock=lambda: float(next(now))),
    )
    assert 6 <= len(compared.now) < 15
    assert compared.verdict is Verdict.UNDECIDED
    assert compared.change is not None


def test_failed_measurement_ends_the_figure_with_its_reason() -> None:
    def fail() -> Measurement:
        raise MeasurementFailed("it broke")

    compared = compare("made", one_after_the_other(lambda: Measurement(1.0, None, Better.MORE), fail), Plan(seed=1))
    assert (compared.verdict, compared.why) == (Verdict.FAILED, "it broke")
    silent = compare("made", one_after_the_other(lambda: Measurement(1.0), lambda: Measurement(1.0)), Plan(seed=1))
    assert silent.verdict is Verdict.FAILED


def test_figure_line_is_parsed_with_all_its_cpu() -> None:
    line = '{"value": 10.5, "better": "less", "cpu_us_per_request": 200.0, "database_cpu_us_per_request": 30.0}\n'
    assert against.parse_line(line) == Measurement(10.5, 230.0, Better.LESS)
    assert against.parse_line('{"value": 3}') == Measurement(3.0)


@pytest.mark.parametrize(
    "output", ["", "no", "[]", "{}", '{"value": null}', '{"value": 0}', '{"value": 1}\n{"value": 2}']
)
def test_figure_line_malformed_is_a_failure(output: str) -> None:
    with pytest.raises(MeasurementFailed):
        against.parse_line(output)
