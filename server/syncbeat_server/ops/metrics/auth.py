"""Metrics of authentication: the cache of checked tokens."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry

from syncbeat_server.ops.metrics.cache import CacheCollector, CacheFigures

_TOKEN_CACHE = (
    "Checked tokens that are remembered now",
    "Calls whose token was remembered",
    "Calls whose token had to be checked",
    "Remembered tokens dropped to make room",
)


class AuthMetrics:
    """Metrics of the authentication of one process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def watch_token_cache(self, figures: Callable[[], CacheFigures]) -> None:
        """Expose the figures of the cache of checked tokens, read at each scrape."""
        self._registry.register(CacheCollector("syncbeat_token_cache", _TOKEN_CACHE, figures))
