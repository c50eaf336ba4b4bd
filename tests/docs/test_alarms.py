"""Tests the alarms: each has its row in the runbook, goes by metrics that there are, and fires when it should."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # mkdocs brings it, without types

from syncbeat_server.ops.metrics.registry import Metrics
from tests.support.prometheus import ROOT, RULES_FILE, alarm_rules, metric_faults, promtool, series_names

pytestmark = pytest.mark.process

RULES = alarm_rules()
UNIT_TESTS = ROOT / "deploy" / "prometheus" / "alerts.test.yml"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule["alert"]))
def test_alarm_has_a_runbook_row_and_known_metrics(rule: dict[str, Any]) -> None:
    rows = [line for line in (ROOT / "docs/operations.md").read_text().splitlines() if line.startswith("| `Syncbeat")]
    assert [row for row in rows if f"`{rule['alert']}`" in row.split("|")[1]], "no row of the runbook"
    assert [name for name in series_names() if name in rule["expr"]]
    assert metric_faults(rule["expr"]) == []
    assert rule["annotations"]["summary"]


def test_alarms_of_budgets_have_a_page_each() -> None:
    page = (ROOT / "docs/slo.md").read_text()
    burning = [rule["alert"] for rule in RULES if "syncbeat_slo_" in rule["expr"]]
    assert len(burning) == 4
    assert not [name for name in burning if f"### {name}\n" not in page]


def test_configuration_and_rules_are_taken_by_prometheus() -> None:
    promtool("check", "config", RULES_FILE.with_name("prometheus.yml"))


def test_each_alarm_is_tested_to_fire_and_not_to() -> None:
    fires: dict[str, set[bool]] = defaultdict(set)
    for group in yaml.safe_load(UNIT_TESTS.read_text(encoding="utf-8"))["tests"]:
        for case in group["alert_rule_test"]:
            fires[case["alertname"]].add(bool(case.get("exp_alerts")))
    assert fires == {rule["alert"]: {True, False} for rule in RULES}


def test_alarms_do_what_their_unit_tests_say() -> None:
    promtool("test", "rules", UNIT_TESTS)


def test_unit_tests_notice_alarms_that_do_not_fire(tmp_path: Path) -> None:
    (tmp_path / "alerts.yml").write_text(RULES_FILE.read_text().replace("time() - 3600", "time()"))
    (tmp_path / UNIT_TESTS.name).write_text(UNIT_TESTS.read_text())
    with pytest.raises(pytest.fail.Exception, match="SyncbeatEventsGivenUp"):
        promtool("test", "rules", tmp_path / UNIT_TESTS.name)


def test_counters_of_alarms_tell_when_they_were_made() -> None:
    metrics = Metrics()
    metrics.push.removal_limit_hit("shop")
    metrics.events.retried("shop", "crm", "FAILED", given_up=True)
    named = {name for rule in RULES for name in re.findall(r"\w+_created", rule["expr"])}
    exposed = {sample.name for family in metrics.registry.collect() for sample in family.samples}
    assert named
    assert named <= exposed
