"""Makes the spans of the queue of deliveries, by the semantic conventions 1.45 for messaging.

https://github.com/open-telemetry/semantic-conventions/blob/v1.45.0/docs/messaging/messaging-spans.md. A claim is their
`receive`, an attempt their `process`. Each begins a trace of its own, linked to the call that accepted the
notification: hours may lie between, and one call may have a million deliveries (ADR 177).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from syncbeat_server.ops.tracing.spans import Attributes, Span, SpanKind, Tracer
from syncbeat_server.push.model import QUEUE_ATTRIBUTES, ClaimedDelivery, DeliveryUpdate


def claim_span(tracer: Tracer, deliveries: Sequence[ClaimedDelivery], since: datetime) -> Span:
    """Return the span of a claim that began at `since`, linked to the calls that accepted what was claimed."""
    attributes: Attributes = {
        **QUEUE_ATTRIBUTES,
        "messaging.operation.name": "claim",
        "messaging.operation.type": "receive",
        "messaging.batch.message_count": len(deliveries),
    }
    accepted = [one.traceparent for one in deliveries if one.traceparent]
    return tracer.start("claim deliveries", SpanKind.CLIENT, attributes, links=accepted, since=since)


def attempt_span(tracer: Tracer, delivery: ClaimedDelivery, claim: str) -> Span:
    """Start the span of an attempt, linked to the call that accepted its notification, and to its claim."""
    attributes: Attributes = {
        **QUEUE_ATTRIBUTES,
        "messaging.operation.name": "attempt",
        "messaging.operation.type": "process",
        "messaging.message.id": delivery.delivery_id,
        "messaging.message.conversation_id": delivery.notification_id,
        "syncbeat.app_id": delivery.app_id,
        "syncbeat.attempt": delivery.attempt,
    }
    links = [one for one in (delivery.traceparent, claim) if one]
    return tracer.start("attempt deliveries", SpanKind.CONSUMER, attributes, links=links)


def describe_result(span: Span, result: DeliveryUpdate) -> None:
    """Say in the span of an attempt what became of the delivery."""
    span.set("syncbeat.delivery.state", result.state.value)
    if result.reason:
        span.set("syncbeat.delivery.reason", result.reason.value)
