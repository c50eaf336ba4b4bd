"""Writes Grafana's dashboards from tools/dashboards.toml, so that panels are alike and queries can be reviewed.

`python -m tools.gen_dashboards FOLDER` writes one JSON file a dashboard there. `make gen` runs it, and
tools/check_drift.sh compares. What is written is Grafana's dashboard model, of which only what differs from its
defaults is given: https://grafana.com/docs/grafana/latest/dashboards/build-dashboards/view-dashboard-json-model/
"""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

TABLE = Path(__file__).with_name("dashboards.toml")

# Grafana divides a dashboard's width by 24.
GRID_COLUMNS = 24
PANEL_COLUMNS, PANEL_ROWS = 8, 8
SCHEMA_VERSION = 39
"""State the version of the dashboard model, that of Grafana 11; newer ones migrate it when they load it."""

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


class PanelKind(StrEnum):
    """Kinds of panels, as Grafana names them."""

    TIMESERIES = "timeseries"
    STAT = "stat"


@dataclass(frozen=True)
class Panel:
    """A panel: the PromQL of its series by their legend, which may hold labels as `{{label}}`."""

    title: str
    queries: Mapping[str, str]
    unit: str = "short"
    """Name the unit of the values as Grafana does: `s`, `reqps`, `percentunit`."""
    about: str = ""
    kind: PanelKind = PanelKind.TIMESERIES

    def __post_init__(self) -> None:
        """Take the kind from its text too."""
        object.__setattr__(self, "kind", PanelKind(self.kind))


@dataclass(frozen=True)
class Dashboard:
    """A dashboard: its panels in reading order."""

    name: str
    title: str
    about: str
    panels: tuple[Panel, ...]
    apps: bool = field(default=False)
    """Offer a choice of apps, `$app` in queries."""


def main(folder: Path) -> int:
    """Write every dashboard into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for one in read_dashboards(TABLE):
        text = json.dumps(dashboard_model(one), indent=1, ensure_ascii=False)
        (folder / f"{one.name}.json").write_text(f"{text}\n", encoding="utf-8")
    return 0


def read_dashboards(table: Path) -> list[Dashboard]:
    """Return the dashboards of a table.

    Raises:
        TypeError: A dashboard or a panel has a key that there is not, or lacks one.
        ValueError: A panel is of no kind that there is.
    """
    return [
        Dashboard(name=name, **{**one, "panels": tuple(Panel(**panel) for panel in one["panels"])})
        for name, one in tomllib.loads(table.read_text(encoding="utf-8")).items()
    ]


def dashboard_model(dashboard: Dashboard) -> dict[str, object]:
    """Return a dashboard in Grafana's model. Its `uid` is its address, which links and bookmarks keep."""
    return {
        "uid": f"syncbeat-{dashboard.name}",
        "title": f"Syncbeat: {dashboard.title}",
        "description": dashboard.about,
        "tags": ["syncbeat"],
        "schemaVersion": SCHEMA_VERSION,
        "editable": True,
        "graphTooltip": 1,  # one cursor in all panels
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "links": [
            {"type": "dashboards", "title": "Syncbeat", "tags": ["syncbeat"], "asDropdown": True, "keepTime": True}
        ],
        "templating": {"list": _variables(dashboard)},
        "panels": [_panel_model(number, panel) for number, panel in enumerate(dashboard.panels)],
    }


def _variables(dashboard: Dashboard) -> list[dict[str, object]]:
    datasource: dict[str, object] = {
        "name": "datasource",
        "label": "Prometheus",
        "type": "datasource",
        "query": "prometheus",
    }
    query = "label_values(syncbeat_sync_requests_total, app)"
    app: dict[str, object] = {
        "name": "app",
        "label": "App",
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"qryType": 5, "query": query, "refId": "apps"},
        "definition": query,
        "refresh": 2,  # when the range of time changes
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
    }
    return [datasource, app] if dashboard.apps else [datasource]


def _panel_model(number: int, panel: Panel) -> dict[str, object]:
    row, column = divmod(number, GRID_COLUMNS // PANEL_COLUMNS)
    options: dict[str, object] = {
        "legend": {"displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull", "max"]},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    if panel.kind == PanelKind.STAT:
        options = {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "none"}
    return {
        "id": number + 1,
        "type": panel.kind.value,
        "title": panel.title,
        "description": panel.about,
        "datasource": DATASOURCE,
        "gridPos": {
            "x": column * PANEL_COLUMNS,
            "y": row * PANEL_ROWS,
            "w": PANEL_COLUMNS,
            "h": PANEL_ROWS,
        },
        "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
        "options": options,
        "targets": [
            {"refId": chr(ord("A") + place), "datasource": DATASOURCE, "expr": query, "legendFormat": legend}
            for place, (legend, query) in enumerate(panel.queries.items())
        ],
    }


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
