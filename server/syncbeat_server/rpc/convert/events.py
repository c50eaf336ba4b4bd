"""Converts the messages of EventService; `effects` has what follows from an event."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

import orjson

from syncbeat.v1 import event_service_pb2 as pb
from syncbeat_server.errors import FieldReason, FieldViolation, InvalidRequest
from syncbeat_server.events.model import (
    LIST_START,
    EventFilter,
    EventKey,
    EventState,
    IncomingEvent,
    IngestResult,
    ListPlace,
    Receipt,
    StoredEvent,
)
from syncbeat_server.events.policy.order import time_fault
from syncbeat_server.push.content.templates import Template
from syncbeat_server.rpc.convert.effects import effects
from syncbeat_server.rpc.convert.fields import content_hash, cursor_message, enum_member, moment, timestamp
from syncbeat_server.rpc.pipeline.call_context import Call

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def incoming_event(request: pb.IngestEventRequest, call: Call, templates: Mapping[str, Template]) -> IncomingEvent:
    """Return the event of a request.

    Raises:
        InvalidRequest: with every fault of its effects.
    """
    app_id = call.app(request.app_id)
    wanted = effects(request.effects, templates)
    occurred_at = moment(request.occurred_time) if request.HasField("occurred_time") else None
    request.app_id = app_id  # so that it makes no difference to a repetition if the app is named
    return IncomingEvent(
        app_id=app_id,
        caller=call.caller,
        source=request.source,
        event_id=request.event_id,
        type=request.type,
        subject=request.subject,
        ordering_key=request.ordering_key or request.subject,
        occurred_at=occurred_at,
        payload_json=request.payload_json,
        effects=wanted,
        content_hash=content_hash(request),
        methods=call.principal.methods,
    )


def check_occurred(event: IncomingEvent, now: datetime) -> None:
    """Check that an event is neither of the future, but for clocks that differ, nor from before 1970.

    Raises:
        InvalidRequest: it occurred more than `MOST_AHEAD_S` ahead of `now`, or earlier than any event.
    """
    fault = None if event.occurred_at is None else time_fault(event.occurred_at, now)
    if fault is not None:
        raise InvalidRequest(FieldViolation("occurred_time", fault, FieldReason.OUT_OF_RANGE))


def event_key(request: pb.GetEventRequest | pb.RetryEventRequest, call: Call) -> EventKey:
    """Return what a request names an event by."""
    return EventKey(call.app(request.app_id), request.source, request.event_id)


def ingested(answer: IngestResult) -> pb.IngestEventResponse:
    """Return the answer to IngestEvent."""
    return pb.IngestEventResponse(
        receipt=receipt(answer.receipt),
        heads=map(cursor_message, answer.result.heads),
        trigger_notification_id=answer.result.trigger_notification_id,
        notification_id=answer.result.notification_id,
    )


def receipt(given: Receipt) -> pb.Receipt:
    """Return a receipt as a message."""
    return pb.Receipt(
        state=_state_number(given.state),
        first_seen_time=timestamp(given.first_seen_at),
        failure=given.failure,
        event_state=_state_number(given.event_state),
    )


def event_filter(request: pb.ListEventsRequest) -> EventFilter | None:
    """Return the filter of a request; None for the state DUPLICATE, in which no event is."""
    state = enum_member(EventState, pb.EventState, "EVENT_STATE_", request.state)
    return None if state is EventState.DUPLICATE else EventFilter(request.source, state)


def list_place(after: str) -> ListPlace:
    """Return the place in a list that a page's key names; empty: the start.

    Raises:
        InvalidRequest: it is no key of `list_key`.
    """
    if not after:
        return LIST_START
    try:
        micros, source, event_id = orjson.loads(after)
        place = ListPlace(_EPOCH + timedelta(microseconds=micros), source, event_id)
        if not isinstance(source, str) or not isinstance(event_id, str) or "\0" in source + event_id:
            raise ValueError("no names of an event")  # U+0000 is in none, and PostgreSQL takes it in no text
        return place
    except (ValueError, TypeError, OverflowError):
        fault = FieldViolation("page_token", "not a token that this list answered", FieldReason.MALFORMED)
        raise InvalidRequest(fault) from None


def list_key(event: StoredEvent) -> str:
    """Return the key of an event in a list."""
    micros = (event.first_seen_at - _EPOCH) // timedelta(microseconds=1)
    return orjson.dumps([micros, event.source, event.event_id]).decode()


def event_list(events: Sequence[StoredEvent], next_page_token: str) -> pb.ListEventsResponse:
    """Return the answer to ListEvents."""
    return pb.ListEventsResponse(events=map(event_message, events), next_page_token=next_page_token)


def event_message(event: StoredEvent) -> pb.Event:
    """Return an event as a message."""
    return pb.Event(
        source=event.source,
        event_id=event.event_id,
        type=event.type,
        subject=event.subject,
        occurred_time=timestamp(event.occurred_at),
        payload_json=event.payload_json,
        state=_state_number(event.state),
        first_seen_time=timestamp(event.first_seen_at),
        update_time=timestamp(event.updated_at),
        attempts=event.attempts,
        duplicate_count=event.duplicate_count,
        failure=event.failure,
        ordering_key=event.ordering_key,
        deadline_time=timestamp(event.deadline_at),
        next_attempt_time=timestamp(event.next_attempt_at),
    )


def _state_number(state: EventState) -> pb.EventState.ValueType:
    return pb.EventState.Value(f"EVENT_STATE_{state}")
