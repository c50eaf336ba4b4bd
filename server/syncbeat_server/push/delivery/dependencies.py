"""Holds what the parts of a delivery worker share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from syncbeat_server.clock import Clock
from syncbeat_server.ops.tracing.spans import Tracer
from syncbeat_server.push.delivery.channel import Channel
from syncbeat_server.push.delivery.worker_metrics import NoMetrics, WorkerMetrics
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.storage.redis.token_bucket import TokenBucket

DOWN_PAUSE_S = 0.5
"""The pause before a store that did not answer is asked again."""

Live = Callable[[Sequence[tuple[str, str, str]]], Awaitable[Sequence[bool]]]
"""Returns, for each (app, user, device), True if the device has a live stream on any server."""


@dataclass(frozen=True, slots=True)
class DeliveryDependencies:
    """The stores, channels and clock that a worker and its steps use.

    `channels` is by app. It is read anew for each delivery, because its owner changes it when an app is configured.
    `allowance` is the rate that all workers of a provider's project share. `tracer`: None if no span is exported.
    """

    database: Database
    channels: Mapping[str, Channel]
    live: Live
    allowance: TokenBucket
    clock: Clock
    metrics: WorkerMetrics = field(default_factory=NoMetrics)
    tracer: Tracer | None = None
