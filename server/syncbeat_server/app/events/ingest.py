"""Wires the ingest of events in a process that serves RPCs, and the retries of those that failed in every process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from syncbeat_server.app.change_notifier import ClusterNotifier
from syncbeat_server.app.process import Process, run_in_background
from syncbeat_server.app.ratelimit.tiers import TierPolicies
from syncbeat_server.app.tuning import hint_tuner
from syncbeat_server.directory.model import ChangeNotifier
from syncbeat_server.events.effects import EffectRules
from syncbeat_server.events.ingest import EventIngest
from syncbeat_server.events.model import EventRule
from syncbeat_server.events.retry_worker import EventRetryWorker
from syncbeat_server.events.service import EventService
from syncbeat_server.ops.settings.server import Settings
from syncbeat_server.push.delivery.worker import DeliveryWorker
from syncbeat_server.ratelimit.model import TierPolicy
from syncbeat_server.sync.tuning.price_updates import HintTuner


@dataclass(frozen=True)
class EventFeature:
    """Events of one process. `retries` runs as long as it serves."""

    ingest: EventIngest
    service: EventService
    retries: Coroutine[Any, Any, None]


def wire_events(
    process: Process, tuner: HintTuner, notifier: ChangeNotifier, policy_of: Callable[[str], TierPolicy]
) -> EventFeature:
    """Create the event feature of a process."""
    database, clock, metrics = process.database, process.clock, process.metrics.events
    rules = EffectRules(lambda app_id: tuner.tuning(app_id).prior, policy_of, clock, process.worker_processes.run)
    ingest = EventIngest(database, rules, event_rule(process.settings), notifier, tuner.recorder, metrics)
    worker = EventRetryWorker(database, ingest, clock, metrics.oldest_waiting, process.rules.event_retries)
    return EventFeature(ingest, EventService(database, ingest), worker.run())


@asynccontextmanager
async def running_retries(process: Process, worker: DeliveryWorker) -> AsyncIterator[None]:
    """Retry events for the block in a process without RPCs; what they change is sampled for hints, as elsewhere."""
    tuner = hint_tuner(process)
    notifier, policies = ClusterNotifier(process, worker, None), TierPolicies(process.apps)
    async with run_in_background([tuner.run(), wire_events(process, tuner, notifier, policies.of).retries]):
        yield


def event_rule(settings: Settings) -> EventRule:
    """Return how long the effects of failed events are retried, from the settings."""
    return EventRule(give_up_s=settings.event_give_up_s, longest_retry_s=settings.event_retry_s)
