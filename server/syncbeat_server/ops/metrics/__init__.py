"""Metrics of a process, declared by feature. Names follow the Prometheus conventions of gRPC and of Prometheus."""

from syncbeat_server.ops.metrics.registry import Metrics

__all__ = ["Metrics"]
