"""Tests studies of logs: means that are equal, bounds below all, and intervals over days."""

from __future__ import annotations

import itertools
import json
import random
from array import array
from pathlib import Path
from typing import Any

import pytest

from syncbeat_devtools.simulate.engine.jobs import job_runner
from syncbeat_devtools.simulate.engine.log_jobs import learn_day
from syncbeat_devtools.simulate.engine.log_replay import Plays
from syncbeat_devtools.simulate.engine.tally import Tally
from syncbeat_devtools.simulate.fleet.devices import DAY
from syncbeat_devtools.simulate.fleet.log_days import DayKey
from syncbeat_devtools.simulate.fleet.log_lines import LogFormat
from syncbeat_devtools.simulate.policies.clairvoyant import least_requests
from syncbeat_devtools.simulate.policies.settings import PolicyRow, Settings
from syncbeat_devtools.simulate.report.log_rows import make_log_row
from syncbeat_devtools.simulate.study.bootstrap import DayDraws
from syncbeat_devtools.simulate.study.log_solver import EQUAL, Group, LogOutcome, solve_log
from syncbeat_server.cli.main import main
from syncbeat_server.sync.policy.interval import Bounds
from tests.simulate.made_logs import START, talk, write_messages

pytestmark = pytest.mark.unit

POLLING = [
    "fixed-30s",
    "sqrt-ewma",
    "ewma, tuned",
    "fast after activity, tuned",
    "fast in the foreground, tuned",
    "adaptive-pull",
    "rates of circumstances, in hindsight",
]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four days of six users."""
    return write_messages(tmp_path_factory.mktemp("logs") / "log.txt", talk(4, 6, 7))


def study(log: Path, capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, Any]:
    """Run a study, and return what it prints."""
    options = ["--trace", str(log), "--trace-format", "messages", "--history-days", "2", "--processes", "1"]
    assert main(["simulate", *options, "--json", *more]) == 0
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


def test_policies_end_near_one_mean_above_the_bound(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = study(log, capsys, "--measure-days", "2", "--history-days", "1", "--cap", "3600")
    rows = found["policies"]
    assert [row["name"] for row in rows] == POLLING
    for row in rows:
        # Of few changes not every mean can be met; the row says so then.
        assert row["mean_s"] == pytest.approx(15.0, rel=0.05)
        assert row["is_equal"] == (not row["reason"]) == (abs(row["mean_s"] / 15.0 - 1.0) <= 0.0101)
        assert row["requests_per_day"] > found["clairvoyant_requests_per_day"] > 0
        low, high = row["intervals"]["requests_per_day"]
        assert low <= row["requests_per_day"] <= high
        assert len(row["by_day"]) == 2
    pull = next(row for row in rows if row["name"] == "adaptive-pull")
    assert set(pull["requests_over"]) == set(POLLING[:5])
    assert pull["requests_over"]["fixed-30s"]["ratio"] < 0.9
    assert found["constants"][0]["rivals"].keys() == set(POLLING[2:5])


def test_days_alone_have_their_own_multipliers(log: Path) -> None:
    keys = [DayKey(log, LogFormat.MESSAGES, START + number * DAY, 2) for number in (1, 2)]
    settings = Settings(1.0, Bounds(5.0, 3600.0))
    with job_runner(1, lambda _share, _what: None) as runner:
        learned = runner.map(learn_day, keys, "")
        apart = solve_log(
            PolicyRow.TUNED_EWMA, [Group((day,)) for day in learned], settings, 15.0, Plays((1,), 64), runner
        )
        together = solve_log(PolicyRow.TUNED_EWMA, [Group(tuple(learned))], settings, 15.0, Plays((1,), 64), runner)
    assert len(set(apart.multipliers)) == 2
    assert len(together.multipliers) == 1
    assert apart.is_equal(15.0)
    assert together.is_equal(15.0)
    assert [tally.mean_s for tally in apart.tallies.values()] == pytest.approx([15.0, 15.0], rel=EQUAL)


def test_study_is_told_as_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = write_messages(tmp_path / "few.txt", talk(1, 5, 8))
    arguments = ["simulate", "--trace", str(log), "--trace-format", "messages", "--history-days", "0"]
    assert main([*arguments, "--measure-from", "2024-10-04", "--devices", "3", "--caps", "--processes", "1"]) == 0
    told = capsys.readouterr().out
    assert "log few.txt: the day from 2024-10-04 00:00 UTC, after 0 days of history; 5 devices" in told
    assert "changes to be seen a day, of which 60% were played; intervals from 5 to 75 s" in told
    assert "constants tuned on the days before: none, for want of days" in told
    assert "adaptive-hybrid" in told
    caps = told[told.index("adaptive-pull by its longest interval") :].splitlines()[2:9]
    assert [line.split()[0] for line in caps] == ["60", "75", "150", "300", "900", "3600", "14400"]
    assert caps[-1].split()[2] == "1.000"


def test_row_says_what_kept_it_from_the_mean() -> None:
    for capped, why in ((95, "the longest interval does not allow it"), (10, "no multiplier gives it")):
        day = Tally(devices=1, polls=100, capped=capped, delays=array("d", [10.0, 20.0]))
        outcome = LogOutcome(PolicyRow.PULL, {0.0: day}, (1.0,), (15.0,))
        assert make_log_row(outcome, 16.0, 1.0, DayDraws(1), 1)["reason"] == why
        assert make_log_row(outcome, 15.1, 1.0, DayDraws(1), 1)["is_equal"]


@pytest.mark.parametrize("seed", range(4))
def test_clairvoyant_bound_is_below_every_choice_of_polls(seed: int) -> None:
    chance = random.Random(seed)
    changes = sorted(chance.uniform(0.0, 600.0) for _ in range(9))
    for mean_s in (5.0, 20.0, 80.0):
        least = least_requests([changes], mean_s)
        fewest = min(
            len(polls)
            for count in range(len(changes) + 1)
            for polls in itertools.combinations(changes, count)
            if sum(min([at for at in polls if at >= one], default=DAY) - one for one in changes) / 9 <= mean_s
        )
        assert 0.0 < least <= fewest
        assert least > fewest - 2.0  # of few changes the duality gap may be a poll or so


def test_clairvoyant_polls_each_lone_change() -> None:
    assert least_requests([[1000.0], [2000.0, 60_000.0]], 0.001) == pytest.approx(3.0, abs=0.01)
    assert least_requests([], 15.0) == least_requests([[], []], 15.0) == 0.0


def tally(requests: int, *delays: float) -> Tally:
    """Return a day's tally."""
    return Tally(devices=1, polls=requests, delays=array("d", delays))


def test_bootstrap_draws_the_same_days_for_both() -> None:
    draws = DayDraws(3)
    days = [tally(100, 10.0, 20.0), tally(300, 12.0, 18.0), tally(500, 5.0, 25.0)]
    twice = [tally(2 * one.polls, *one.delays) for one in days]
    low, high = draws.requests(days, 1) or (0.0, 0.0)
    assert 100.0 <= low < 200.0 < 400.0 < high <= 500.0
    assert draws.ratio(twice, days) == pytest.approx((2.0, 2.0))
    assert draws.mean_s(days) == pytest.approx((15.0, 15.0))
    lowest, highest = draws.quantile_s(days, 0.95) or (0.0, 0.0)
    assert lowest < 20.0 <= highest <= 25.0


def test_bootstrap_of_one_day_tells_no_interval() -> None:
    assert DayDraws(1).requests([tally(5, 1.0)], 1) is None
    assert DayDraws(1).quantile_s([tally(5, 1.0)], 0.95) is None
