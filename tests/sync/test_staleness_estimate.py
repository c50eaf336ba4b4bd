"""Tests the staleness estimate of a poll against processes whose every instant is known."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncbeat_server.sync.policy.staleness import NOTHING, Staleness, is_away, staleness_of_delivery, staleness_of_poll

pytestmark = pytest.mark.unit

LATE_S = 30.0

times = st.floats(0.0, 1e6)


@pytest.mark.parametrize("rate", [1 / 900, 1 / 60, 1 / 5])
@pytest.mark.parametrize("longest", [30.0, 90.0])
def test_staleness_estimate_matches_a_poisson_process(rate: float, longest: float) -> None:
    dice = random.Random(7)
    now, change = 0.0, dice.expovariate(rate)
    truly = [0.0, 0.0, 0.0]
    estimated = [0.0, 0.0, 0.0]
    while truly[0] < 40_000:
        last, now = now, now + dice.uniform(0.2, 1.0) * longest
        seen = []
        while change <= now:
            seen.append(change)
            change += dice.expovariate(rate)
        if seen:
            met = staleness_of_poll(now, last, seen[-1], len(seen), LATE_S)
            estimated = [sum(pair) for pair in zip(estimated, met, strict=True)]
            truly[0] += len(seen)
            truly[1] += sum(now - one for one in seen)
            truly[2] += sum(now - one > LATE_S for one in seen)
    assert estimated[0] == truly[0]
    assert estimated[1] == pytest.approx(truly[1], rel=0.02)
    assert estimated[2] == pytest.approx(truly[2], rel=0.02, abs=truly[0] / 1_000)


def test_staleness_of_one_change_is_exact() -> None:
    assert staleness_of_poll(100.0, 40.0, 90.0, 1, LATE_S) == Staleness(1.0, 10.0, 0.0)
    assert staleness_of_poll(100.0, 40.0, 60.0, 1, LATE_S) == Staleness(1.0, 40.0, 1.0)


def test_staleness_of_others_is_spread_since_the_last_poll() -> None:
    # One is 20 s old, two lie anywhere from 20 to 60 s ago: three quarters of that span are late.
    assert staleness_of_poll(100.0, 40.0, 80.0, 3, LATE_S) == Staleness(3.0, 20.0 + 2 * 40.0, 1.5)


@given(times, times, times, st.integers(0, 1_000), st.floats(0.1, 1e4))
def test_staleness_tolerates_clock_skew(now: float, last: float, newest: float, unseen: int, late_s: float) -> None:
    met = staleness_of_poll(now, last, newest, unseen, late_s)
    assert met == NOTHING or met.changes == unseen
    assert met.stale_s >= 0.0
    assert 0.0 <= met.late <= met.changes


def test_staleness_of_a_stream_is_exact() -> None:
    assert staleness_of_delivery(100.0, 99.5, LATE_S) == Staleness(1.0, 0.5, 0.0)
    assert staleness_of_delivery(100.0, 60.0, LATE_S) == Staleness(1.0, 40.0, 1.0)
    assert staleness_of_delivery(100.0, 101.0, LATE_S) == Staleness(1.0, 0.0, 0.0)


def test_staleness_excludes_a_device_that_was_away() -> None:
    assert not is_away(60.0, 60.0)
    assert not is_away(90.0, 60.0)
    assert is_away(96.0, 60.0)
    assert not is_away(12.0, 5.0)
