"""Converts events that come as JSON, from webhooks, to requests of IngestEvent, held against the same field rules."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from google.protobuf import json_format

from syncbeat.v1 import event_service_pb2 as pb
from syncbeat_server.auth.model import Principal, PrincipalKind
from syncbeat_server.errors import FieldReason, FieldViolation, InvalidRequest
from syncbeat_server.events.model import IncomingEvent
from syncbeat_server.push.content.templates import Template
from syncbeat_server.rpc.convert.events import incoming_event
from syncbeat_server.rpc.pipeline.call_context import Call
from syncbeat_server.rpc.validation.message_validator import Validator, compile_validator

_PLACE = re.compile(r'at "IngestEventRequest\.([\w.\[\]]{1,200})"')
_MOST_DEPTH = 32


def event_request(document: Mapping[str, Any]) -> pb.IngestEventRequest:
    """Return the request that a document in the contract's JSON form is.

    Raises:
        InvalidRequest: it has other fields or values than the contract; the message repeats none of them.
    """
    request = pb.IngestEventRequest()
    try:
        json_format.ParseDict(dict(document), request, max_recursion_depth=_MOST_DEPTH)
    except (json_format.ParseError, RecursionError, TypeError, ValueError) as error:
        place = _PLACE.search(str(error))  # the rest may repeat values
        fault = "not a field, or not a value, of the contract in its JSON form"
        path = place[1] if place else "effects"
        raise InvalidRequest(FieldViolation(path, fault, FieldReason.MALFORMED)) from None
    if violations := _validator()(request):
        raise InvalidRequest(*violations)
    return request


def source_principal(app_id: str, source: str, methods: frozenset[str]) -> Principal:
    """Return the caller that a source of webhooks is: a service of one app, whose name no service can have."""
    return Principal(PrincipalKind.SERVICE, f"webhook:{source}", methods=methods, apps=frozenset({app_id}))


def source_event(
    request: pb.IngestEventRequest, principal: Principal, templates: Mapping[str, Template]
) -> IncomingEvent:
    """Return the event of a source's request.

    Its content is what no delivery of it changes: not its time, which may be mapped to the delivery's; not its payload,
    in which Stripe counts deliveries under way; and not its effects, which are those of the settings at the time.

    Raises:
        InvalidRequest: with every fault of its effects.
    """
    event = incoming_event(request, Call("IngestEvent", "", principal), templates)
    told = (event.type, event.subject, event.ordering_key)
    return replace(event, content_hash=hashlib.sha256("\0".join(told).encode()).digest())


@cache
def _validator() -> Validator:
    return compile_validator(pb.IngestEventRequest.DESCRIPTOR)
