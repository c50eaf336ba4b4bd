"""Tests the alarms for Prometheus: each has its row in the runbook, and goes by metrics that there are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # mkdocs brings it, without types

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]
METRICS = set(re.findall(r"`(syncbeat_\w+|grpc_\w+)`", (ROOT / "docs/reference/metrics.md").read_text()))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule["alert"]))
def test_alarm_has_a_runbook_row_and_known_metrics(rule: dict[str, Any]) -> None:
    rows = [line for line in (ROOT / "docs/operations.md").read_text().splitlines() if line.startswith("| `Syncbeat")]
    assert [row for row in rows if f"`{rule['alert']}`" in row.split("|")[1]], "no row of the runbook"
    named = set(re.findall(r"\b(?:syncbeat|grpc)_\w+", rule["expr"]))
    assert named
    assert named <= METRICS, "a metric that no process has"
    assert rule["annotations"]["summary"]


def test_alarms_of_budgets_have_a_page_each() -> None:
    page = (ROOT / "docs/slo.md").read_text()
    burning = [rule["alert"] for rule in RULES if "syncbeat_slo_" in rule["expr"]]
    assert len(burning) == 4
    assert not [name for name in burning if f"### {name}\n" not in page]
