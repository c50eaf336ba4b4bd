"""Tests the table of `syncbeat-server slo report` as it was looked at, and the comparison of two reports."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from syncbeat_server.cli.deployment.slo_table import compared, is_report, report_table, verdict_of

pytestmark = pytest.mark.unit

WORKLOAD: dict[str, Any] = {
    "calls": 120_000.0,
    "errors": 30.0,
    "hints": 100_000.0,
    "hintP95": "0.004500s",
    "callP95": "0.022s",
    "cpuPerCall": "0.000150s",
}
REPORT: dict[str, Any] = {
    "verdict": "SLO_VERDICT_OK",
    "triggers": [
        {"name": "database_down", "verdict": "SLO_VERDICT_OK", "value": 0.0, "warnThreshold": 0.0}
        | {"rollbackThreshold": 0.0, "unit": "count"},
        {"name": "errors", "verdict": "SLO_VERDICT_OK", "value": 0.00025, "warnThreshold": 0.005}
        | {"rollbackThreshold": 0.02, "unit": "ratio", "window": "3600s", "events": 120_000.0},
        {"name": "hint_p95", "verdict": "SLO_VERDICT_OK", "value": 0.0045, "warnThreshold": 0.05}
        | {"rollbackThreshold": 0.1, "unit": "s", "window": "3600s", "events": 100_000.0},
        {"name": "availability_slow_burn", "verdict": "SLO_VERDICT_OK", "value": 0.25, "warnThreshold": 1.0}
        | {"rollbackThreshold": "Infinity", "unit": "burn rate", "window": "259200s", "events": 120_000.0},
    ],
    "window": "3600s",
    "objectives": [
        {"name": "errors", "objective": 0.995, "actual": 0.99975, "errorBudgetRemaining": 0.95, "events": 120_000.0}
    ],
    "workload": WORKLOAD,
    "reportTime": "2030-01-01T12:00:00Z",
}
TABLE = """\
OK over 60 min, at 2030-01-01T12:00:00Z

figures
  FIGURE                  VERDICT   VALUE     WARN  ROLLBACK  WINDOW  EVENTS
  database_down           OK            0        0         0     now       -
  errors                  OK       0.03 %   0.50 %    2.00 %  60 min  120000
  hint_p95                OK       4.5 ms  50.0 ms  100.0 ms  60 min  100000
  availability_slow_burn  OK         0.25        1         -    72 h  120000

objectives over 30 days
  OBJECTIVE  WANTED   REACHED  BUDGET LEFT  EVENTS
  errors     99.5 %  99.975 %       95.0 %  120000

workload
  120000 calls, 30 failed by our fault; p95 22.0 ms, of 100000 hints 4.5 ms; 0.1 ms of CPU a call"""


def with_workload(**fields: Any) -> dict[str, Any]:
    return {**deepcopy(REPORT), "workload": {**WORKLOAD, **fields}}


def test_report_table_is_as_it_was_looked_at() -> None:
    assert report_table(REPORT) == TABLE


def test_report_table_without_the_database_says_what_is_unknown() -> None:
    assert "  unknown" in report_table({**REPORT, "objectives": []})


def test_report_table_prints_nothing_that_a_terminal_acts_on() -> None:
    report = deepcopy(REPORT)
    report["triggers"][0]["name"] = "evil\x1b[2J"
    assert "\x1b" not in report_table(report)


@pytest.mark.parametrize(
    ("fields", "grown"),
    [
        ({}, set()),
        ({"hintP95": "0.0056s"}, set()),
        ({"hintP95": "0.0057s"}, {"hint_p95_growth"}),
        ({"callP95": "0.028s", "cpuPerCall": "0.000200s"}, {"call_p95_growth", "cpu_growth"}),
        ({"callP95": "0.9s", "calls": 99.0}, set()),
    ],
)
def test_report_that_grew_by_a_quarter_warns(fields: dict[str, Any], grown: set[str]) -> None:
    found = compared(with_workload(**fields), REPORT)
    warned = {one["name"] for one in found["triggers"] if verdict_of(one) == "WARN"}
    assert warned == grown
    assert verdict_of(found) == ("WARN" if grown else "OK")
    assert verdict_of(compared({**with_workload(**fields), "verdict": "SLO_VERDICT_ROLLBACK"}, REPORT)) == "ROLLBACK"
    assert is_report(found), "it can be compared with in its turn"
    assert report_table(found)


@pytest.mark.parametrize(
    "found",
    [
        *(None, [], {}, {"workload": []}, {"workload": {"calls": "many"}}, {"workload": {"hintP95": 5}}),
        *({"workload": {"calls": float("nan")}}, {"workload": {"cpuPerCall": "-1s"}}),
    ],
)
def test_report_that_is_none_is_refused(found: object) -> None:
    assert not is_report(found)
