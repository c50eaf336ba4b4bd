"""Collects the metrics of all features in one registry."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, ProcessCollector

from syncbeat_server.ops.metrics.auth import AuthMetrics
from syncbeat_server.ops.metrics.events import EventMetrics
from syncbeat_server.ops.metrics.push import PushMetrics
from syncbeat_server.ops.metrics.ratelimit import LimitMetrics
from syncbeat_server.ops.metrics.resilience import ResilienceMetrics
from syncbeat_server.ops.metrics.rpc import RpcMetrics
from syncbeat_server.ops.metrics.slo import SloMetrics
from syncbeat_server.ops.metrics.storage import StorageMetrics
from syncbeat_server.ops.metrics.sync import SyncMetrics
from syncbeat_server.ops.metrics.traces import TraceMetrics
from syncbeat_server.ops.metrics.webhooks import WebhookMetrics


class Metrics:
    """Metrics of one process, by feature, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # memory, CPU, files; read from /proc when somebody asks
        self.rpc = RpcMetrics(self.registry)
        self.sync = SyncMetrics(self.registry)
        self.push = PushMetrics(self.registry)
        self.events = EventMetrics(self.registry)
        self.auth = AuthMetrics(self.registry)
        self.webhooks = WebhookMetrics(self.registry)
        self.limits = LimitMetrics(self.registry)
        self.storage = StorageMetrics(self.registry)
        self.resilience = ResilienceMetrics(self.registry)
        self.traces = TraceMetrics(self.registry)
        self.slo = SloMetrics(self.registry)
