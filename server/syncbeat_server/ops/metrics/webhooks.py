"""Metrics of webhooks: what came, from which source, and what became of it."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter


class WebhookMetrics:
    """Metrics of webhooks, as one process sees them. Only sources of the settings are labels."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._received = Counter(
            "syncbeat_webhooks",
            "Webhooks by source and outcome; unsigned: refused before its sender was known, so without a source",
            ("app", "source", "outcome"),
            registry=registry,
        )
        self._unsigned = Counter(
            "syncbeat_webhook_signature_faults",
            "Webhooks refused before their sender was known, by the fault of their signature",
            ("fault",),
            registry=registry,
        )

    def received(self, app_id: str, source: str, outcome: str, fault: str | None) -> None:
        """Count a webhook, and the fault of its signature if it has one."""
        self._received.labels(app_id, source, outcome).inc()
        if fault is not None:
            self._unsigned.labels(fault).inc()
