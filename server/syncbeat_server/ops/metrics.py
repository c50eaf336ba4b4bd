"""Every metric of the service, declared in one place. Names follow the gRPC Prometheus convention."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """The metrics of one process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ("grpc_service", "grpc_method", "grpc_code")
        self._handled = Counter("grpc_server_handled", "RPCs completed on the server", labels, registry=self.registry)
        self._seconds = Histogram(
            "grpc_server_handling_seconds",
            "Time to handle an RPC",
            labels[:2],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._series: dict[tuple[str, str, str], tuple[Counter, Histogram]] = {}
        self.open_streams = Gauge("syncbeat_open_streams", "Hint streams open now", registry=self.registry)
        self._outcomes = Counter(
            "syncbeat_delivery_attempts",
            "Delivery attempts by what became of them",
            ("outcome",),
            registry=self.registry,
        )

    def call_handled(self, service: str, method: str, code: str, seconds: float) -> None:
        """Count one finished RPC."""
        series = self._series.get((service, method, code))
        if series is None:
            # Looking a series up by its labels costs more than counting does.
            series = self._handled.labels(service, method, code), self._seconds.labels(service, method)
            self._series[service, method, code] = series
        handled, taken = series
        handled.inc()
        taken.observe(seconds)

    def attempt_ended(self, outcome: str) -> None:
        """Count one delivery attempt."""
        self._outcomes.labels(outcome).inc()
