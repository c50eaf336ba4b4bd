"""Decides what senders of webhooks are answered, by what they do with it (ADR 167).

Svix, Stripe and Standard Webhooks senders repeat whatever is not 2xx for hours or days; GitHub repeats nothing by
itself. So what a repeat may mend, here or in the settings, is no 2xx; what no repeat mends ends the repeats.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import orjson

from syncbeat_server.defaults import SignatureScheme
from syncbeat_server.errors import (
    AccessDenied,
    DeadlineExceeded,
    DependencyDown,
    EventIdReused,
    InvalidRequest,
    MigrationNeeded,
    Overloaded,
    RateLimited,
    Reason,
    SyncbeatError,
)
from syncbeat_server.http.problems import PROBLEM, problem_body
from syncbeat_server.http.webhooks.model import MappingFault, WebhookOutcome

_JSON = "application/json"
_MAX_RETRY_AFTER_S = 3_600.0
_UNFORESEEN_RETRY_S = 60.0
"""Tells the sender to come again after an error that nobody listed here: nothing was recorded, so that an answer that
ended the repeats would lose the event. A minute spares us a sender that meets a bug at each delivery."""
# Svix ends the repeats of a message at this header, whatever the status.
_ABORT = {"webhook-delivery": "abort-message"}
_RETRIES_4XX = frozenset({SignatureScheme.STANDARD_WEBHOOKS, SignatureScheme.STRIPE})


@dataclass(frozen=True)
class WebhookAnswer:
    """An answer to a webhook."""

    status: HTTPStatus
    body: bytes
    content_type: str = _JSON
    headers: Mapping[str, str] = field(default_factory=dict)


def done(outcome: WebhookOutcome, **more: Any) -> WebhookAnswer:
    """Return the answer to an event that is committed, or does not concern us."""
    return WebhookAnswer(HTTPStatus.OK, orjson.dumps({"state": outcome.upper(), **more}))


def unsigned() -> WebhookAnswer:
    """Return the one answer to an unknown source and to a signature that does not fit."""
    detail = "no such source, or its signature is missing, wrong or too old"
    return _problem(HTTPStatus.FORBIDDEN, Reason.ACCESS_DENIED, detail)


def unmapped(fault: MappingFault) -> WebhookAnswer:
    """Return the answer to a payload that the mapping does not fit: the sender repeats it, and may find it mended."""
    return _problem(HTTPStatus.UNPROCESSABLE_ENTITY, Reason.INVALID_FIELD, str(fault))


def failed(scheme: SignatureScheme, error: SyncbeatError) -> tuple[WebhookOutcome, WebhookAnswer]:
    """Return the outcome of an event that was not recorded, and its answer."""
    match error:
        case RateLimited():
            return _postponed(HTTPStatus.TOO_MANY_REQUESTS, error, error.retry_after_s)
        case Overloaded() | DependencyDown():
            return _postponed(HTTPStatus.SERVICE_UNAVAILABLE, error, error.retry_after_s)
        case DeadlineExceeded() | MigrationNeeded():
            return _postponed(HTTPStatus.SERVICE_UNAVAILABLE, error, 1.0)
        case AccessDenied() | InvalidRequest() if error.reason in (Reason.ACCESS_DENIED, Reason.INVALID_FIELD):
            # Of the settings: its effects go beyond the allow-list, or break the contract.
            answer = _problem(HTTPStatus.UNPROCESSABLE_ENTITY, error.reason, error.message)
            return WebhookOutcome.UNMAPPED, answer
        case EventIdReused():
            return WebhookOutcome.REFUSED, _refused(scheme, error)
        case _:
            return _postponed(HTTPStatus.SERVICE_UNAVAILABLE, error, _UNFORESEEN_RETRY_S)


def _postponed(status: HTTPStatus, error: SyncbeatError, after_s: float) -> tuple[WebhookOutcome, WebhookAnswer]:
    seconds = math.ceil(min(max(after_s, 1.0), _MAX_RETRY_AFTER_S))
    answer = _problem(status, error.reason, error.message, {"retry-after": str(seconds)})
    return WebhookOutcome.POSTPONED, answer


def _refused(scheme: SignatureScheme, error: SyncbeatError) -> WebhookAnswer:
    """Return the answer that ends the repeats of what no repeat mends."""
    if scheme in _RETRIES_4XX:
        return done(WebhookOutcome.REFUSED, reason=error.reason, detail=error.message)
    headers = _ABORT if scheme is SignatureScheme.SVIX else {}
    return _problem(HTTPStatus.CONFLICT, error.reason, error.message, headers)


def _problem(
    status: HTTPStatus, reason: Reason, detail: str, headers: Mapping[str, str] | None = None
) -> WebhookAnswer:
    return WebhookAnswer(status, problem_body(status, reason, detail), PROBLEM, headers or {})
