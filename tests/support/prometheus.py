"""Knows what the dashboards and alarms ask Prometheus, which metrics there are, and where Debian's Prometheus is."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # mkdocs brings it, without types

ROOT = Path(__file__).resolve().parents[2]
RULES_FILE = ROOT / "deploy" / "prometheus" / "alerts.yml"
DASHBOARDS = ROOT / "deploy" / "grafana" / "dashboards"
_TOOLS = Path(sys.prefix) / "prometheus-tools"
_ROW = re.compile(r"^\| `(?P<name>\w+)` \| (?P<kind>\w+) \| (?P<labels>[^|]*) \|", re.MULTILINE)


@dataclass(frozen=True)
class MetricFamily:
    """A metric of the server's registry, as docs/reference/metrics.md lists it, which is generated from that."""

    kind: str
    labels: frozenset[str]


@dataclass(frozen=True)
class Query:
    """A query of a dashboard: where it stands, and its PromQL with Grafana's variables in it."""

    place: str
    legend: str
    text: str

    def promql(self, interval: str) -> str:
        """Return the PromQL that Prometheus gets when all apps are shown, with `interval` as that of rates."""
        return self.text.replace("$__rate_interval", interval).replace("$app", ".*")


@cache
def series_names() -> dict[str, MetricFamily]:
    """Return the metrics by the names of their series: a histogram has three, a counter may tell when it was made."""
    found = {}
    for row in _ROW.finditer((ROOT / "docs/reference/metrics.md").read_text(encoding="utf-8")):
        labels = frozenset(re.findall(r"\w+", row["labels"]))
        if row["kind"] == "histogram":
            for suffix in ("_bucket", "_sum", "_count"):
                found[row["name"] + suffix] = MetricFamily("histogram", labels | {"le"})
        else:
            if row["kind"] == "counter":
                found[row["name"].removesuffix("_total") + "_created"] = MetricFamily("gauge", labels)
            found[row["name"]] = MetricFamily(row["kind"], labels)
    return found


def alarm_rules() -> list[dict[str, Any]]:
    """Return the alarms, as their file has them."""
    groups = yaml.safe_load(RULES_FILE.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def dashboard_models() -> dict[str, dict[str, Any]]:
    """Return the dashboards in Grafana's model, by the names of their files."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(DASHBOARDS.glob("*.json"))}


def dashboard_queries() -> list[Query]:
    """Return the queries of all panels of all dashboards."""
    return [
        Query(f"{name}: {panel['title']}, {target['refId']}", target["legendFormat"], target["expr"])
        for name, model in dashboard_models().items()
        for panel in model["panels"]
        for target in panel["targets"]
    ]


def metric_faults(promql: str) -> list[str]:
    """Return what no process can answer in a query: unknown metrics and labels, and rates of what does not count."""
    known = series_names()
    named = set(re.findall(r"\b(?:syncbeat|grpc_server)_\w+", promql))
    faults = [f"no metric {name}" for name in sorted(named - known.keys())]
    labels = {"instance"}.union(*(known[name].labels for name in named & known.keys()))
    if "ALERTS" in promql:
        labels |= {"alertname", "alertstate"}
    asked = [label for group in re.findall(r"\bby \(([^)]*)\)", promql) for label in re.findall(r"\w+", group)]
    faults += [f"no label {label}" for label in asked if label not in labels]
    for name, matchers in re.findall(r"\b(\w+)\{([^}]*)\}", promql):
        if name in known:
            chosen = re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", re.sub(r'"[^"]*"', '""', matchers))
            faults += [f"no label {one} of {name}" for one in chosen if one not in known[name].labels]
    for name in re.findall(r"\b(?:rate|increase)\((\w+)", promql):
        if name in known and known[name].kind == "gauge":
            faults.append(f"a rate of the gauge {name}")
    return faults


def reason_without_prometheus() -> str:
    """Fetch Prometheus if that was not done yet; return why it cannot be had, empty when it is there."""
    subprocess.run(["sh", "tools/prometheus_tools.sh"], cwd=ROOT, check=True, capture_output=True)
    return "" if (_TOOLS / "prometheus.made").is_file() else (_TOOLS / "prometheus.missing").read_text().strip()


def prometheus_program(name: str) -> Path:
    """Return the path of `promtool` or `prometheus`."""
    return _TOOLS / "bin" / name


def promtool(*arguments: str | Path) -> str:
    """Return what promtool prints; fail the test with it if it finds a fault, skip it where promtool cannot be had."""
    if reason := reason_without_prometheus():
        pytest.skip(f"not run: {reason}")
    command = [str(prometheus_program("promtool")), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(f"promtool {' '.join(command[1:3])}\n{done.stdout}{done.stderr}", pytrace=False)
    return done.stdout
