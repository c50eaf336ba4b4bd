"""Metrics of circuit breakers."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter


class ResilienceMetrics:
    """Metrics of the breakers of one process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._moved = Counter(
            "syncbeat_breaker_transitions",
            "Times that a breaker opened, let trials through or closed, by what it stands before",
            ("dependency", "state"),
            registry=registry,
        )

    def breaker_moved(self, dependency: str, state: str) -> None:
        """Count that a breaker before such a dependency has taken a state."""
        self._moved.labels(dependency, state).inc()
