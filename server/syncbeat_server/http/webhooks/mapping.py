"""Maps payloads of webhooks to events, by the expressions of a source's table. Decides without I/O."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import orjson

from syncbeat_server.defaults import TimeFormat
from syncbeat_server.events.policy.order import time_fault
from syncbeat_server.http.webhooks.expressions import Expression, ExpressionFault
from syncbeat_server.http.webhooks.model import Delivery, MappedEvent, MappingFault

ANY_TYPE = "*"
"""The key of the effects of every type that has none of its own."""

_MS_FROM = 1e11  # in seconds the year 5138, in milliseconds 1973: a time beyond it is in milliseconds
_NUMBER = re.compile(r"[0-9]{1,15}(\.[0-9]{1,9})?")


@dataclass(frozen=True)
class PayloadMapping:
    """Expressions of a source, over `{"body": ..., "delivery": {"id", "time", "digest"}}`.

    Attributes:
        effects: The expression of the effects by the event's type; `*` is for every other type.
        max_age_s: How long ago an event may have happened, which it has to say then; None: as long as it likes.
    """

    event_id: Expression
    type: Expression
    subject: Expression | None
    ordering_key: Expression | None
    occurred: Expression | None
    occurred_as: TimeFormat
    keep_payload: bool
    max_age_s: float | None
    effects: Mapping[str, Expression] = field(default_factory=dict)

    def without_max_age(self) -> PayloadMapping:
        """Return the mapping for payloads that may be old, as samples are."""
        return self if self.max_age_s is None else replace(self, max_age_s=math.inf)


def map_payload(mapping: PayloadMapping, body: bytes, delivery: Delivery, now: datetime) -> MappedEvent | None:
    """Return the event of a payload; None if it does not concern us: no effects for its type, or null.

    Raises:
        MappingFault: it does not fit the mapping.
    """
    document = {"body": _parsed(body), "delivery": asdict(delivery)}
    kind = _text("type", mapping.type, document)
    expression = mapping.effects.get(kind, mapping.effects.get(ANY_TYPE))
    effects = None if expression is None else _value(f"effects.{kind[:64]}", expression, document)
    if effects is None:
        return None
    if not isinstance(effects, dict):
        raise MappingFault("effects", "want an object with the fields of EventEffects, or null")
    return MappedEvent(
        event_id=_text("id", mapping.event_id, document),
        type=kind,
        subject=_text("subject", mapping.subject, document, optional=True),
        ordering_key=_text("ordering_key", mapping.ordering_key, document, optional=True),
        occurred=_occurred(mapping, document, now),
        payload_json=body.decode() if mapping.keep_payload else "",
        effects=effects,
    )


def _parsed(body: bytes) -> Mapping[str, Any]:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        if "surrogate in string" in error.msg:
            half = (
                "a text with half of a surrogate pair (\\ud800 to \\udfff), which is no character and cannot be stored"
            )
            raise MappingFault("body", half) from None
        raise MappingFault("body", "no JSON in UTF-8; is the sender to send it as application/json?") from None
    if not isinstance(document, dict):
        raise MappingFault("body", "want a JSON object")
    return document


def _value(setting: str, expression: Expression, document: Any) -> Any:
    try:
        return expression.evaluate(document)
    except ExpressionFault as fault:
        raise MappingFault(setting, str(fault)) from None


def _text(setting: str, expression: Expression | None, document: Any, *, optional: bool = False) -> str:
    value = None if expression is None else _value(setting, expression, document)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if value in (None, ""):
        if optional:
            return ""
        raise MappingFault(setting, "the payload has none")
    if not isinstance(value, str):
        raise MappingFault(setting, "want text or a whole number")
    return value


def _occurred(mapping: PayloadMapping, document: Any, now: datetime) -> datetime | None:
    value = None if mapping.occurred is None else _value("occurred", mapping.occurred, document)
    if value is None:
        if mapping.max_age_s is not None:
            raise MappingFault("occurred", "the payload has none, so that its age is unknown")
        return None
    moment = _moment(value, mapping.occurred_as)
    fault = time_fault(moment, now)
    if fault is not None:
        raise MappingFault("occurred", fault)
    if mapping.max_age_s is not None and (now - moment).total_seconds() > mapping.max_age_s:
        raise MappingFault("occurred", f"more than {mapping.max_age_s:g} s ago")
    return moment


def _moment(value: Any, form: TimeFormat) -> datetime:
    if form is TimeFormat.ISO:
        try:
            moment = datetime.fromisoformat(value)
            if moment.tzinfo is None:
                raise MappingFault("occurred", "an ISO 8601 time without a zone")
            return moment.astimezone(UTC)
        except (TypeError, ValueError, OverflowError):
            raise MappingFault("occurred", "no ISO 8601 time") from None
    if isinstance(value, bool) or not (isinstance(value, int | float) or _is_number(value)):
        raise MappingFault("occurred", "no number")
    number = float(value)
    in_ms = form is TimeFormat.UNIX_MILLISECONDS
    if number < 0 or (number >= _MS_FROM) != in_ms or number >= _MS_FROM * 2_500:
        raise MappingFault("occurred", f"no time in {'milliseconds' if in_ms else 'seconds'} since 1970")
    return datetime.fromtimestamp(number / 1_000 if in_ms else number, UTC)


def _is_number(value: Any) -> bool:
    return isinstance(value, str) and _NUMBER.fullmatch(value) is not None
