"""Wires the ingest of events in a process that serves RPCs, and the worker that retries those that failed."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from syncbeat_server.app.process import Process
from syncbeat_server.app.sync import SyncFeature
from syncbeat_server.directory.model import ChangeNotifier
from syncbeat_server.events.effects import EffectRules
from syncbeat_server.events.ingest import EventIngest
from syncbeat_server.events.model import EventRule
from syncbeat_server.events.retry_worker import EventRetryWorker
from syncbeat_server.events.service import EventService
from syncbeat_server.ops.settings.server import Settings
from syncbeat_server.ratelimit.model import TierPolicy


@dataclass(frozen=True)
class EventFeature:
    """Events of one process. `retries` runs as long as it serves."""

    ingest: EventIngest
    service: EventService
    retries: Coroutine[Any, Any, None]


def wire_events(
    process: Process, sync: SyncFeature, notifier: ChangeNotifier, policy_of: Callable[[str], TierPolicy]
) -> EventFeature:
    """Create the event feature of a process that serves RPCs."""
    database, clock, metrics, tuner = process.database, process.clock, process.metrics.events, sync.tuner
    rules = EffectRules(lambda app_id: tuner.tuning(app_id).prior, policy_of, clock, process.worker_processes.run)
    ingest = EventIngest(database, rules, event_rule(process.settings), notifier, tuner.recorder, metrics)
    worker = EventRetryWorker(database, ingest, clock, metrics.oldest_waiting, process.rules.event_retries)
    return EventFeature(ingest, EventService(database, ingest), worker.run())


def event_rule(settings: Settings) -> EventRule:
    """Return how long the effects of failed events are retried, from the settings."""
    return EventRule(give_up_s=settings.event_give_up_s, longest_retry_s=settings.event_retry_s)
