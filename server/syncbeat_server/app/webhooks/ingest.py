"""Hands events of webhooks to the ingest, as requests of IngestEvent would be: same rules, same limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC
from typing import TYPE_CHECKING, Any

from syncbeat_server.audit.origin import Origin, origin
from syncbeat_server.clock import Clock
from syncbeat_server.events.ingest import EventIngest
from syncbeat_server.events.model import EventState, IncomingEvent
from syncbeat_server.events.policy.effect_methods import check_allowed
from syncbeat_server.http.webhooks.model import MappedEvent, Source, WebhookOutcome
from syncbeat_server.push.content.templates import Template
from syncbeat_server.runtime.deadline import set_deadline

if TYPE_CHECKING:
    from syncbeat_server.rpc.pipeline.call_limits import CallLimits, MethodLimits

Templates = Callable[[str], Mapping[str, Template]]

_OUTCOMES = {
    EventState.ACCEPTED: WebhookOutcome.ACCEPTED,
    EventState.DUPLICATE: WebhookOutcome.DUPLICATE,
    EventState.STALE: WebhookOutcome.STALE,
    # Recorded: from here on the service repeats it, so that the sender need not.
    EventState.FAILED: WebhookOutcome.FAILED,
}


class SourceIngest:
    """Ingests the events of sources."""

    def __init__(self, ingest: EventIngest, templates: Templates, limits: CallLimits, clock: Clock) -> None:
        self._ingest = ingest
        self._templates = templates
        self._limits = _limits_of_ingest(limits)
        self._clock = clock

    async def __call__(
        self, source: Source, event: MappedEvent, within_s: float, address: Callable[[], str]
    ) -> WebhookOutcome:
        """Return what became of an event, once that is committed; entries of the audit log have its sender's address.

        Raises:
            InvalidRequest: what the mapping makes of it breaks the contract.
            AccessDenied: its effects go beyond the source's allow-list.
            RateLimited: the app's limits refuse it.
            SyncbeatError: as `EventIngest.ingest`.
        """
        from syncbeat_server.rpc.convert.event_documents import event_request, source_event, source_principal

        set_deadline(within_s)
        principal = source_principal(source.app_id, source.name, source.methods)
        request = event_request(event_document(source, event))
        if self._limits.limits.is_active:
            pending = self._limits.check(principal, request, request.ByteSize(), self._clock.monotonic())
            if pending is not None:
                await self._limits.finish(pending)
        made = source_event(request, principal, self._templates(source.app_id))
        origin.set(Origin(made.caller, address))  # for this request, which has its connection and task for itself
        answer = await self._ingest.ingest(made)
        return _OUTCOMES[answer.receipt.state]


def event_document(source: Source, event: MappedEvent) -> dict[str, Any]:
    """Return IngestEventRequest in the contract's JSON form."""
    document: dict[str, Any] = {
        "app_id": source.app_id,
        "source": source.name,
        "event_id": event.event_id,
        "type": event.type,
        "subject": event.subject,
        "ordering_key": event.ordering_key,
        "payload_json": event.payload_json,
        "effects": event.effects,
    }
    if event.occurred is not None:
        document["occurred_time"] = event.occurred.astimezone(UTC).isoformat().replace("+00:00", "Z")
    return document


def checked_event(source: Source, event: MappedEvent, templates: Mapping[str, Template]) -> IncomingEvent:
    """Return the event as it would be ingested. Raises InvalidRequest or AccessDenied, as an ingest would."""
    from syncbeat_server.rpc.convert.event_documents import event_request, source_event, source_principal

    principal = source_principal(source.app_id, source.name, source.methods)
    found = source_event(event_request(event_document(source, event)), principal, templates)
    check_allowed(found.effects, found.methods)
    return found


def _limits_of_ingest(limits: CallLimits) -> MethodLimits:
    from syncbeat_server.rpc.pipeline.call_limits import MethodLimits
    from syncbeat_server.rpc.server import CONTRACT

    methods = {method.name: method for service in CONTRACT for method in service.methods}
    return MethodLimits(limits, methods["IngestEvent"])
