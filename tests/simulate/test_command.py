"""Tests what `simulate` prints, for people and for programs, from fleets and from logs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from syncbeat_devtools.simulate.fleet.log_days import DayKey, check_day, log_day
from syncbeat_devtools.simulate.fleet.log_lines import LogFormat, read_lines
from syncbeat_devtools.simulate.study.estimate import recompute_estimate
from syncbeat_server.cli.main import main
from syncbeat_server.errors import ConfigurationError

pytestmark = pytest.mark.unit

NAMES = ["fixed-30s", "tier-table", "backoff", "sqrt-ewma", "adaptive-pull", "adaptive-hybrid"]
KEYS = {
    "name",
    "requests_per_day",
    "mean_s",
    "p50_s",
    "p95_s",
    "p99_s",
    "wakeups_per_device_day",
    "peak_over_mean",
    "bound_requests_per_day",
    "optimality",
    "causal_ceiling",
}
LOG = """time,scope,device,kind
2026-01-05T08:00:00+00:00,chat,anna,change
2026-01-05T08:00:10+00:00,chat,ben,foreground
2026-01-05T09:00:00+00:00,chat,anna,change
2026-01-05T09:30:00+00:00,chat,ben,change
1767607200,other,,change
2026-01-06T12:00:00+00:00,chat,anna,change
"""


def test_simulate_small_fleet_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["simulate", "--json", "--devices", "6", "--known-days", "0", "--seed", "1", "--seed", "2"]
    assert main([*arguments, "--processes", "2"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = {row["name"]: row for row in found["policies"]}
    assert list(rows) == NAMES
    for row in rows.values():
        assert row.keys() >= KEYS
        assert 0.0 < row["optimality"] <= 1.05
        assert row["p50_s"] <= row["p95_s"] <= row["p99_s"]
    assert rows["fixed-30s"]["requests_per_day"] == pytest.approx(57_600_000, rel=0.001)
    assert rows["adaptive-hybrid"]["requests_per_day"] < rows["adaptive-pull"]["requests_per_day"] / 3
    assert rows["adaptive-pull"]["plus_minus"]["optimality"] is not None
    assert rows["adaptive-pull"]["estimator"]["expected_over_true_changes"] == pytest.approx(1.0, abs=0.5)
    assert found["as_written"][0]["mean_s"] > 30.0
    (elsewhere,) = found["on_other_days"]
    assert [day["seed"] for day in elsewhere["by_seed"]] == [3, 4, 5, 6]
    assert [day["seed"] for day in rows["adaptive-hybrid"]["by_seed"]] == [1, 2]
    assert elsewhere["multiplier"] == rows["adaptive-hybrid"]["multiplier"]
    assert elsewhere["requests_per_day"] != rows["adaptive-hybrid"]["requests_per_day"]


def test_simulate_replays_a_log_of_one_day(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log.csv"
    path.write_text(LOG, encoding="utf-8")
    anna, ben = log_day(DayKey(path, LogFormat.EVENTS, read_lines(path)[0].at, 0)).devices
    assert anna.changes == (5400.0,)
    # Its own are not news to it, nor what it listed when it came, nor is the next day's part of the day.
    assert (ben.born, ben.changes) == (10.0, (3600.0,))
    assert main(["simulate", "--trace", str(path), "--processes", "1"]) == 0
    table = capsys.readouterr().out
    assert all(name in table for name in ("fixed-30s", "sqrt-ewma", "ewma, tuned", "adaptive-pull", "adaptive-hybrid"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("time,scope,device\n", "wants the columns kind"),
        ("time,scope,device,kind\n", "has no lines"),
        ("time,scope,device,kind\nnoon,a,b,change\n", "line 2: no time: 'noon'"),
        ("time,scope,device,kind\n1,a,b,change\n80000,a,b,change\n", "no device has a change to see"),
        ("time,scope,device,kind\nnan,a,b,change\n", "line 2: no time: 'nan'"),
    ],
)
def test_simulate_refuses_an_empty_log(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigurationError, match=said):
        check_day(DayKey(path, LogFormat.EVENTS, read_lines(path)[0].at, 0))


def test_simulate_refuses_missing_log_bad_plot_and_nonsense(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "--trace", str(tmp_path / "none.csv")]) == 1
    assert main(["simulate", "--plot", str(tmp_path / "plot.pdf")]) == 1
    assert "want a name that ends with .png or .svg" in capsys.readouterr().err
    for wrong in (["--devices", "0"], ["--mean", "0.1"], ["--known-days", "31"], ["--fleet", "none"]):
        with pytest.raises(SystemExit):
            main(["simulate", *wrong])


def test_simulate_shows_the_original_estimate_does_not_add_up() -> None:
    found = recompute_estimate()
    assert found.fixed_requests_per_day == 57_600_000
    assert found.sum_of_its_parts == 34_988_800 != found.claimed_total
    assert found.saving == pytest.approx(found.claimed_saving, abs=0.001)
    assert found.mean_staleness_s == pytest.approx(25.0)
    assert found.fixed_gb_per_day == pytest.approx(118.0)
