"""Tests load leveling: when devices come, by the book of promised arrivals; and the stretch under load."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncbeat_server.sync.policy.arrival_book import HORIZON_S, ArrivalBook
from syncbeat_server.sync.policy.load_leveling import MAX_STRETCH, Load, LoadLeveler, next_stretch

pytestmark = pytest.mark.unit

START = 1_900_000_000.0
DEVICES = 20_000

Choose = Callable[[float, float], float]
Interval = Callable[[random.Random], float]


def fleet(choose: Choose, interval: Interval, seconds: int, spread_s: float = 1.0) -> tuple[list[int], float]:
    """Arrivals by second of devices that all came within `spread_s`, and by how much their intervals grew."""
    chance = random.Random(7)
    devices = [(START + spread_s * chance.random(), interval(chance)) for _ in range(DEVICES)]
    heapq.heapify(devices)
    arrivals = [0] * seconds
    wanted = given_s = 0.0
    while devices[0][0] < START + seconds:
        at, every_s = devices[0]
        wait = choose(at, every_s)
        arrivals[int(at - START)] += 1
        wanted += every_s
        given_s += wait
        heapq.heapreplace(devices, (at + wait, every_s))
    return arrivals, given_s / wanted - 1.0


def peak_over_mean(arrivals: list[int]) -> float:
    return max(arrivals) / mean(arrivals)


def booked(seed: int = 1) -> Choose:
    book, draw = ArrivalBook(START), random.Random(seed).random
    return lambda now, interval_s: book.book_arrival(now, interval_s, draw)


def jittered(seed: int = 1) -> Choose:
    draw = random.Random(seed).random
    return lambda _, interval_s: interval_s * (0.9 + 0.2 * draw())


def equal(_: random.Random) -> float:
    return 111.0


def mixed(chance: random.Random) -> float:
    return min(900.0, max(10.0, chance.lognormvariate(4.4, 0.9)))


@pytest.mark.parametrize("interval", [equal, mixed])
def test_load_leveling_after_an_outage_levels_within_ten_minutes(interval: Interval) -> None:
    arrivals, grown = fleet(booked(), interval, 780)
    assert peak_over_mean(arrivals[600:]) <= 1.1
    assert max(arrivals[1:]) <= 1.5 * mean(arrivals[600:]), "and so it is before, but for the second of the outage"
    assert abs(grown) <= 0.02
    by_chance, _ = fleet(jittered(), interval, 780)
    assert peak_over_mean(by_chance[600:]) > peak_over_mean(arrivals[600:])


def test_load_leveling_beats_blind_jitter() -> None:
    arrivals, _ = fleet(jittered(), equal, 780)
    assert peak_over_mean(arrivals[600:]) > 2.5


def test_load_leveling_tolerates_broken_promises() -> None:
    choose, chance = booked(), random.Random(5)

    def unreliable(now: float, interval_s: float) -> float:
        wait = choose(now, interval_s)
        kind = chance.random()
        return wait * chance.random() if kind < 0.2 else 3.0 * wait if kind > 0.9 else wait

    arrivals, _ = fleet(unreliable, equal, 780)
    assert peak_over_mean(arrivals[600:]) <= 1.3


def test_load_leveling_keeps_calm_intervals_within_a_tenth() -> None:
    book, chance = ArrivalBook(START), random.Random(3)
    waits = []
    now = START
    for _ in range(40_000):
        now += 0.01
        waits.append(book.book_arrival(now, 100.0, chance.random))
    settled = waits[20_000:]
    assert min(settled) >= 90.0
    assert max(settled) <= 110.0
    assert abs(mean(settled) - 100.0) <= 1.0


@given(
    interval_s=st.floats(0.0, 1e7, allow_nan=False),
    floor_s=st.floats(0.0, 1e5),
    first=st.floats(0.0, 1.0, exclude_max=True),
    later_s=st.floats(-1e5, 1e5),
    crowd=st.integers(0, 40),
)
def test_load_leveling_stays_above_the_floor_and_within_half(
    interval_s: float, floor_s: float, first: float, later_s: float, crowd: int
) -> None:
    book, chance = ArrivalBook(START), random.Random(1)
    for _ in range(crowd):
        book.book_arrival(START, min(interval_s, 50.0), chance.random)
    wait = book.book_arrival(START + later_s, interval_s, lambda: first, floor_s)
    assert max(floor_s, 0.5 * interval_s * 0.999) <= wait <= max(floor_s, 1.5 * interval_s * 1.001)


def test_load_leveling_book_forgets_the_past() -> None:
    book = ArrivalBook(START)
    for _ in range(100):
        book.book_arrival(START, 10.0, random.Random(5).random)
    assert book.peak_per_s() > 0.0
    assert book.advance_to(START + 100.0) == 100
    assert book.peak_per_s() == 0.0
    assert book.advance_to(START + 10 * HORIZON_S) == 0
    assert book.coming_seconds() == (0, 0.0)


def test_load_leveling_of_two_processes_is_as_good_as_one() -> None:
    books, chance = [ArrivalBook(START), ArrivalBook(START)], random.Random(11)
    told: dict[int, int] = {}
    heard_at = START

    def choose(now: float, interval_s: float) -> float:
        nonlocal heard_at
        if now >= heard_at + 1.0:
            heard_at = now
            for book in books:
                for second, count in book.take_unshared().items():
                    told[second] = told.get(second, 0) + count
            for book in books:
                book.set_totals(int(now), HORIZON_S, told)
        return chance.choice(books).book_arrival(now, interval_s, chance.random)

    arrivals, grown = fleet(choose, equal, 780)
    assert peak_over_mean(arrivals[600:]) <= 1.5
    assert abs(grown) <= 0.02


def test_load_leveling_bookings_unsent_are_sent_later() -> None:
    book = ArrivalBook(START)
    second = int(START + book.book_arrival(START, 20.0, lambda: 0.5))
    untold = book.take_unshared()
    assert untold == {second: 1}
    book.return_unshared(untold)
    assert book.take_unshared() == {second: 1}
    book.set_totals(int(START), 60, {})
    assert book.peak_per_s() == 0.1, "what the others lost of it stands here"
    book.set_totals(int(START), 60, {second: 5, second + 1: 2})
    assert book.advance_to(START + 60.0) == 7
    book.return_unshared(untold)
    assert book.take_unshared() == {}, "it is over"


def test_load_leveling_counts_a_duplicate_message_once() -> None:
    book = ArrivalBook(START)
    for _ in range(2):
        book.set_totals(int(START), 60, {int(START) + 5: 30})
    assert book.peak_per_s() == 3.0
    assert book.advance_to(START + 60.0) == 30


def test_load_stretch_follows_the_load_and_eases_off() -> None:
    assert next_stretch(1.0, 0.79) == 1.0
    assert next_stretch(2.0, 0.7) == 2.0, "between calm and full it is held"
    assert next_stretch(1.0, 3.2) == 2.0
    assert next_stretch(2.0, 0.5) == 1.9
    assert next_stretch(1.0, math.inf) == MAX_STRETCH
    stretch = 1.0
    for _ in range(30):
        stretch = next_stretch(stretch, 3.0 / stretch)
    assert 3.0 / stretch == pytest.approx(0.8, abs=0.01), "it settles where the load is borne"


@given(stretch=st.floats(1.0, MAX_STRETCH), low=st.floats(0.0, 1e9), more=st.floats(0.0, 1e9))
def test_load_stretch_grows_with_load(stretch: float, low: float, more: float) -> None:
    assert 1.0 <= next_stretch(stretch, low) <= next_stretch(stretch, low + more) <= MAX_STRETCH


def test_load_stretch_applies_to_the_background_first() -> None:
    def mean_wait(pacing: LoadLeveler, *, background: bool) -> float:
        return mean(pacing.pace(100.0, background=background, now=START) for _ in range(200))

    def loaded(*loads: float) -> LoadLeveler:
        pacing = LoadLeveler(ArrivalBook(START), random.Random(1).random)
        for load in loads:
            pacing.adjust(Load(rate=load))
        return pacing

    doubled = loaded(3.2)
    assert mean_wait(doubled, background=True) == pytest.approx(200.0, rel=0.05)
    assert mean_wait(doubled, background=False) == pytest.approx(100.0, rel=0.05)
    sixfold = loaded(28.8)
    assert mean_wait(sixfold, background=True) == pytest.approx(600.0, rel=0.05)
    assert mean_wait(sixfold, background=False) == pytest.approx(200.0, rel=0.05)
    assert "rate" in sixfold.describe()
    assert "6.00 times" in sixfold.describe()
