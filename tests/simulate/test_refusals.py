"""Tests the refusals of `simulate`: one line before it works, and its answer where others would fail at the end."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from syncbeat_devtools.simulate.fleet.log_days import DayKey, log_day
from syncbeat_devtools.simulate.fleet.log_lines import LogFormat, read_lines
from syncbeat_devtools.simulate.report.output import print_result
from syncbeat_server.cli.main import main
from syncbeat_server.errors import ConfigurationError

pytestmark = pytest.mark.unit

HEAD = "time,scope,device,kind\n"
DAY = "0,a,ben,poll\n500,a,anna,change\n80000,a,anna,change\n"
SMALL = ["--devices", "2", "--known-days", "0", "--processes", "1"]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A day of two devices."""
    path = tmp_path / "log.csv"
    path.write_text(HEAD + DAY, encoding="utf-8")
    return path


PRINTING = """
import sys
from syncbeat_devtools.simulate.report.output import print_result
sys.exit(print_result('x'))
"""


def test_simulate_search_is_not_misled_by_one_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "one.csv"
    log.write_text(f"{HEAD}1,a,c,poll\n2,a,b,change\n80000,a,c,poll\n", encoding="utf-8")
    assert main(["simulate", "--trace", str(log), "--processes", "1"]) == 0
    told = capsys.readouterr().out
    assert told.startswith(
        "log one.csv: the day from 1970-01-01 00:00 UTC, after 7 days of history; 2 devices and 1 ch"
    )
    assert "None" not in told
    assert "±" not in told


def test_simulate_draws_a_log(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = log.with_name("log.svg")
    assert main(["simulate", "--trace", str(log), "--plot", str(plot), "--processes", "1", "--json"]) == 0
    curves = json.loads(capsys.readouterr().out)["curves"]
    assert {"adaptive-pull", "ewma, tuned", "each commit known beforehand"} <= curves.keys()
    assert plot.read_text(encoding="utf-8").rstrip().endswith("</svg>")


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("100,a,ben,poll\n3700,a,anna,change\n", "spans 1.0 hours, from line 2 to line 3; want a day, 20 hours"),
        ("1764235588000,a,b,change\n", "line 2: want seconds since 1970: '1764235588000'"),
        ("-1e308,a,b,change\n", "line 2: want seconds since 1970"),
        (
            "1700000000,a,b,change\n0,a,c,poll\n1700080000,a,b,change\n",
            "spans 0.0 hours, from line 3 to line 3, and is silent for 19,676 days then, until line 2 (is one of their",
        ),
        ("1,a,c,poll\n9000,a,b,change\n1e9,a,b,change\n", "from line 2 to line 3, and is silent for"),
        ("1,a\n", "line 2: ends before all of its columns"),
    ],
)
def test_simulate_refuses_a_log_that_is_no_day(lines: str, said: str, log: Path) -> None:
    log.write_text(HEAD + lines, encoding="utf-8")
    with pytest.raises(ConfigurationError) as refusal:
        read_lines(log)
    assert said in refusal.value.message


def test_simulate_reads_logs_of_spreadsheets(log: Path) -> None:
    log.write_text("\ufeff" + HEAD + DAY.replace("change", " Change"), encoding="utf-8")
    day = log_day(DayKey(log, LogFormat.EVENTS, 0.0, 0))
    assert [device.changes for device in day.devices] == [(), (500.0, 80000.0)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--seed", "7", "--seed", "7"], "--seed: the same one twice"),
        (["--mean", "1"], "intervals from 5 to 5 s give means between 2.5 and 2.5 s, so 1 s cannot be met"),
        (["--cap", "2"], "so 15 s cannot be met"),
        (["--cap", "30"], "intervals from 5 to 30 s give means between 2.5 and 15 s, so 15 s cannot be met"),
        (["--outage", "--variants"], "--outage: is a study of its own"),
        (["--plot", "x.png", "--sweep", "x.png"], "--plot, --sweep: want two files"),
        (["--plot", "none/x.png"], "none/x.png: there is no such directory"),
        (["--trace", "log.csv", "--variants"], "--variants: needs the true rates"),
        (["--trace", "log.csv", "--sweep", "x.png"], "--sweep: changes the pushes of a fleet"),
        (["--caps"], "--caps: compares longest intervals on a log"),
        (["--measure-days", "2"], "--measure-days, --measure-from, --measure-day: choose days of a log"),
        (
            ["--trace", "log.csv", "--measure-day", "2024-01-01", "--measure-days", "2"],
            "--measure-day: measures each day alone",
        ),
    ],
)
def test_simulate_refuses_impossible_targets(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", *SMALL, *arguments]) == 1
    told = capsys.readouterr()
    assert said in told.err
    assert told.err.count("\n") == 1
    assert not told.out


def test_simulate_refuses_a_plot_onto_a_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    taken = tmp_path / "taken.png"
    taken.mkdir()
    assert main(["simulate", *SMALL, "--plot", str(taken)]) == 1
    assert "taken.png: is a directory" in capsys.readouterr().err


@pytest.mark.parametrize("devices", ["000000001" + "9" * 12, "20001", "9" * 5000])
def test_simulate_bounds_devices_by_the_fleet(devices: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["simulate", "--devices", devices])
    assert "want a whole number from 1 to 20000" in capsys.readouterr().err


def test_simulate_output_encoding_replaces_missing_letters() -> None:
    raw = io.BytesIO()
    with contextlib.redirect_stdout(io.TextIOWrapper(raw, encoding="ascii")):
        assert print_result("0.7 ±0.1 of fünf") == 0
        assert raw.getvalue() == b"0.7 +-0.1 of f\\xfcnf\n"


def test_simulate_closed_output_ends_quietly() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run([sys.executable, "-c", PRINTING], stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (1, b"")


def test_simulate_full_disk_is_one_line() -> None:
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run([sys.executable, "-c", PRINTING], stdout=full, stderr=subprocess.PIPE, check=False)
    assert ended.returncode == 1
    assert ended.stderr.rstrip().endswith(b"the result cannot be written: No space left on device")
