"""Tests the records of a soak: exact to their buckets, bounded for days, and the same after a kill."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest

from syncbeat_devtools.soak.measure.histogram import COARSE, FINE, Histogram
from syncbeat_devtools.soak.measure.recorder import OpenPush, Recorder
from syncbeat_devtools.soak.measure.series import MOST_POINTS
from syncbeat_devtools.soak.measure.state_file import read_state, write_state
from syncbeat_devtools.soak.plan import Operation
from syncbeat_server.errors import ConfigurationError

pytestmark = pytest.mark.unit

TWO_DAYS_S = 48 * 3_600
STEP_S = 61
FEW_MIB = 4 << 20


@pytest.mark.parametrize(("bits", "error"), [(FINE, 0.016), (COARSE, 0.125)])
def test_soak_histogram_quantiles_are_exact_to_their_bucket(bits: int, error: float) -> None:
    dice = random.Random(1)
    times = sorted(dice.lognormvariate(-5.0, 1.5) for _ in range(20_000))
    histogram = Histogram(bits)
    for time_s in times:
        histogram.add(time_s)
    for share in (0.01, 0.5, 0.95, 0.99, 1.0):
        exact = times[max(0, -int(-len(times) * share // 1) - 1)]
        assert histogram.quantile(share) == pytest.approx(exact, rel=error + 0.001, abs=1e-5)
    assert histogram.mean() == pytest.approx(sum(times) / len(times))


def test_soak_histogram_takes_any_time_and_merges() -> None:
    one, other = Histogram(), Histogram()
    for seconds in (-1.0, 0.0, 1e9):
        one.add(seconds)
    other.add(0.5)
    one.merge(other)
    assert one.count == 4
    assert Histogram().quantile(0.5) is None
    assert (one.quantile(1.0) or 0.0) > 600.0


def two_days() -> Recorder:
    """Record a call of each kind each minute of two days."""
    recorder, dice = Recorder(), random.Random(2)
    for second in range(0, TWO_DAYS_S, STEP_S):
        for operation in Operation:
            recorder.success(operation, float(second), dice.lognormvariate(-5.0, 1.0))
        recorder.staleness(float(second), dice.uniform(0.0, 40.0), by_stream=second % 2 == 0)
        recorder.failure(Operation.PUBLISH, float(second), f"CODE {second}", is_server_fault=True)
        recorder.series.at(float(second)).rss_octets = 1e8
        recorder.verdict(float(second), ("OK", "WARN")[second % 2])
    return recorder


def test_soak_records_of_two_days_are_bounded_and_lose_no_count(tmp_path: Path) -> None:
    recorder = two_days()
    series, totals = recorder.series, recorder.totals
    calls = -(-TWO_DAYS_S // STEP_S) * (len(Operation) + 1)
    assert len(series.points) <= MOST_POINTS
    assert series.width_s == 1_024.0
    assert sum(point.counts[0] for point in series.points) == calls
    assert sum(one.calls for one in totals.tallies.values()) == calls
    assert len(totals.causes) <= 201
    assert len(recorder.verdicts) == 500
    write_state(tmp_path / "state.json", {}, float(TWO_DAYS_S), recorder)
    assert (tmp_path / "state.json").stat().st_size < FEW_MIB


def test_soak_state_comes_back_as_it_was_written(tmp_path: Path) -> None:
    recorder = two_days()
    recorder.totals.push_states["SENT"] = 3
    recorder.totals.lateness.add(0.25)
    recorder.open_pushes = [OpenPush("id", 12.5, {"PENDING": 2})]
    path = tmp_path / "state.json"
    write_state(path, {"rate": 5.0}, 12.5, recorder)
    run, elapsed_s, back = read_state(path)
    assert (run, elapsed_s) == ({"rate": 5.0}, 12.5)
    assert back.open_pushes == recorder.open_pushes
    again = tmp_path / "again.json"
    write_state(again, run, elapsed_s, back)
    assert json.loads(again.read_text()) == json.loads(path.read_text())
    assert sorted(os.listdir(tmp_path)) == ["again.json", "state.json"]


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"format": 2}', '{"format": 1, "run": {}}'])
def test_soak_state_that_is_none_is_refused_by_its_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "state.json"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=r"state\.json"):
        read_state(path)
    path.unlink()
    with pytest.raises(ConfigurationError, match="no run to resume"):
        read_state(path)
