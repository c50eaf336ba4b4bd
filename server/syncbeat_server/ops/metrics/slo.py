"""Metrics of the service level objectives: what is left of their error budgets, and how fast these are spent."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Gauge


class SloMetrics:
    """Metrics of the objectives, of all processes of the deployment: each process shows the same."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._budgets = Gauge(
            "syncbeat_slo_error_budget_remaining_ratio",
            "Part of an objective's error budget of 30 days that is left; negative when it is overspent",
            ("objective",),
            registry=registry,
        )
        self._burn_rates = Gauge(
            "syncbeat_slo_burn_rate",
            "How many times faster than it lasts an objective's error budget is spent, over a window",
            ("objective", "window"),
            registry=registry,
        )

    def stand(self, budgets: Mapping[str, float], burn_rates: Mapping[tuple[str, str], float]) -> None:
        """Set the part that is left of each objective's budget, and the burn rates by objective and window."""
        for objective, left in budgets.items():
            self._budgets.labels(objective).set(left)
        for labels, rate in burn_rates.items():
            self._burn_rates.labels(*labels).set(rate)
