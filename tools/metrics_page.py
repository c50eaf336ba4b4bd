"""Describes every metric in Markdown, as a process with every part of the service declares them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from prometheus_client.core import Metric
from prometheus_client.metrics import MetricWrapperBase

from syncbeat_server.ops.group_metrics.process_exchange import processes_metric
from syncbeat_server.ops.metrics import Metrics
from syncbeat_server.runtime.health_monitor import CheckResult, HealthReport, Readiness
from syncbeat_server.storage.postgres.pool.pool_figures import ACQUIRE_SECONDS, PoolFigures, PoolStatus
from tools.markdown import table


@dataclass(frozen=True)
class _Cache:
    size: int = 0
    hits: int = 0
    misses: int = 0
    evictions: int = 0


class _Pool:
    pool_status, pool_figures = PoolStatus(0, 0, 0, 0, 0.0), PoolFigures()


@dataclass
class _Redis:
    errors: dict[Any, int] = field(default_factory=dict)
    is_up: bool = True


class _Limits:
    is_shared = True
    asked = charged = decided_locally = size = 0


def metrics_page() -> str:
    """Return the page of all metrics, as a process with every part of the service declares them."""
    metrics = Metrics()
    metrics.auth.watch_token_cache(_Cache)
    metrics.sync.watch_view_cache(_Cache)
    metrics.storage.watch_redis(_Redis())
    metrics.storage.watch_pool(_Pool(), ACQUIRE_SECONDS)
    metrics.storage.watch_health(lambda: HealthReport(Readiness.READY, {"": CheckResult()}))
    metrics.sync.watch_apps(dict, (), (), {})
    metrics.limits.watch(_Limits())
    declared: dict[str, tuple[str | None, str, Sequence[str]]] = {}
    for collector in metrics.registry._collector_to_names:  # their labels are told by no public name
        if isinstance(collector, MetricWrapperBase):
            declared[collector._name] = (collector._type, collector._documentation, collector._labelnames)
        else:
            for family in collector.collect():
                declared[family.name] = (family.type, family.documentation, _labels(family))
    group = processes_metric({})
    declared[group.name] = (group.type, group.documentation, _labels(group))
    rows = [
        (_exposed(name, kind), kind or "", ", ".join(f"`{one}`" for one in labels), text)
        for name, (kind, text, labels) in sorted(declared.items())
    ]
    return _METRICS + table(("metric", "type", "labels", "meaning"), rows)


def _exposed(name: str, kind: str | None) -> str:
    return f"`{name}_total`" if kind == "counter" else f"`{name}`"


def _labels(family: Metric) -> Sequence[str]:
    labels: Sequence[str] = family._labelnames  # type: ignore[attr-defined]  # of the families that are made by hand
    return labels


_METRICS = """# Metrics

Served on `/metrics` at `SYNCBEAT_OPS_LISTEN`, in OpenMetrics or Prometheus' text format, by each process for itself or
for all that share `SYNCBEAT_METRICS_DIR` ([metrics and traces](../observability.md)). A histogram has the series
`_bucket`, `_sum` and `_count`. `deploy/prometheus/alerts.yml` has alarms on them.

"""
