"""Tests the dashboards for Grafana: they are whole, and ask for metrics that there are, in PromQL that parses."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from tests.support.prometheus import Query, dashboard_models, dashboard_queries, metric_faults, promtool
from tools.gen_dashboards import GRID_COLUMNS

pytestmark = pytest.mark.process

MODELS = dashboard_models()
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
TOLD_ONCE = {"syncbeat_check_passed", "syncbeat_limits_shared", "syncbeat_ready", "syncbeat_redis_up"}
# What Prometheus itself has.
OWN_SERIES = {"ALERTS"}


def overlap(first: dict[str, int], second: dict[str, int]) -> bool:
    """Tell whether two rectangles of the grid have a cell in common."""
    return all(
        first[start] < second[start] + second[size] and second[start] < first[start] + first[size]
        for start, size in (("x", "w"), ("y", "h"))
    )


def test_there_is_a_dashboard_of_each_part() -> None:
    assert MODELS.keys() == {"overview", "hints", "push", "streams", "stores", "auth"}
    assert len({model["uid"] for model in MODELS.values()}) == len(MODELS)
    assert len({model["title"] for model in MODELS.values()}) == len(MODELS)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_dashboard_is_whole(model: dict[str, Any]) -> None:
    panels = model["panels"]
    assert 6 <= len(panels) <= 10
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    assert not [pair for pair in combinations(panels, 2) if overlap(pair[0]["gridPos"], pair[1]["gridPos"])]
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= GRID_COLUMNS for panel in panels)
    targets = [target for panel in panels for target in panel["targets"]]
    assert all(one["datasource"] == SOURCE for one in (*panels, *targets))
    assert all(len({one["refId"] for one in panel["targets"]}) == len(panel["targets"]) > 0 for panel in panels)
    declared = {variable["name"] for variable in model["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(panels))) - {"__rate_interval"}
    assert used == declared


@pytest.mark.parametrize("query", dashboard_queries(), ids=lambda query: query.place)
def test_query_asks_for_known_metrics(query: Query) -> None:
    assert metric_faults(query.text) == []
    assert re.search(r"\b(syncbeat|grpc_server)_\w+", query.text) or OWN_SERIES & set(re.findall(r"\w+", query.text))
    kept = {label for group in re.findall(r"\bby \(([^)]*)\)", query.text) for label in re.findall(r"\w+", group)}
    assert set(re.findall(r"\{\{(\w+)\}\}", query.legend)) <= kept


@pytest.mark.parametrize("query", dashboard_queries(), ids=lambda query: query.place)
def test_query_counts_no_processes_by_what_a_target_tells_once(query: Query) -> None:
    # Processes on one port tell of such a gauge together: a sum is one of targets, whose legend has to say so.
    found = re.findall(r"\b(?:sum|count)(?: by \([^)]*\))? ?\((\w+)", query.text)
    assert not set(found) & TOLD_ONCE or "targets" in query.legend


@pytest.mark.parametrize(
    ("promql", "fault"),
    [
        ("sum(syncbeat_gone)", "no metric syncbeat_gone"),
        ("sum by (nobody) (syncbeat_ready)", "no label nobody"),
        ('syncbeat_ready{app="default"}', "no label app of syncbeat_ready"),
        ("rate(syncbeat_ready[5m])", "a rate of the gauge syncbeat_ready"),
        ("rate(syncbeat_pool_acquire_seconds[5m])", "no metric syncbeat_pool_acquire_seconds"),
    ],
)
def test_unknown_metrics_and_labels_are_found(promql: str, fault: str) -> None:
    assert metric_faults(promql) == [fault]


def test_queries_parse(tmp_path: Path) -> None:
    # A rule that records what a query answers is refused where the query is no PromQL.
    rules = [{"record": f"query:{n}", "expr": one.promql("1m")} for n, one in enumerate(dashboard_queries())]
    path = tmp_path / "queries.yml"
    path.write_text(json.dumps({"groups": [{"name": "queries", "rules": rules}]}))  # JSON is YAML
    assert f"{len(rules)} rules found" in promtool("check", "rules", path)
