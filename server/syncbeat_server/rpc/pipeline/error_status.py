"""Maps domain errors to gRPC statuses, in one table, with the details that go with them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import NoReturn

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from syncbeat_server.errors import (
    DependencyDown,
    DependencyUnfit,
    EventIdReused,
    FieldReason,
    FieldViolation,
    InvalidRequest,
    KeyUnknownYet,
    Overloaded,
    RateLimited,
    Reason,
    RequestIdReused,
    SyncbeatError,
)

DOMAIN = "syncbeat"
_STATUS_KEY = "grpc-status-details-bin"
_PUSHBACK_KEY = "grpc-retry-pushback-ms"
# Peers drop trailers above 8 KiB, and the reason with them. The message is in them twice, once percent-encoded with
# three bytes for each, and the details are in base64, four bytes for three.
_MAX_VIOLATIONS = 50
_MAX_VIOLATION_BYTES = 3_072
_MAX_TEXT_BYTES = 160
_MAX_PUSHBACK_S = 5.0
_MAX_MESSAGE_BYTES = 512

_log = logging.getLogger(__name__)

STATUS: dict[Reason, grpc.StatusCode] = {
    Reason.TOKEN_INVALID: grpc.StatusCode.UNAUTHENTICATED,
    Reason.TOKEN_EXPIRED: grpc.StatusCode.UNAUTHENTICATED,
    Reason.TOKEN_REVOKED: grpc.StatusCode.UNAUTHENTICATED,
    Reason.ACCESS_DENIED: grpc.StatusCode.PERMISSION_DENIED,
    Reason.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Reason.INVALID_FIELD: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.REQUEST_ID_REUSED: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.EVENT_ID_REUSED: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.REQUEST_IN_FLIGHT: grpc.StatusCode.ABORTED,
    Reason.SEQUENCE_MISMATCH: grpc.StatusCode.ABORTED,
    Reason.RATE_LIMITED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.OVERLOADED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.DEADLINE_EXCEEDED: grpc.StatusCode.DEADLINE_EXCEEDED,
    Reason.DEPENDENCY_DOWN: grpc.StatusCode.UNAVAILABLE,
    Reason.MIGRATION_NEEDED: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.NOT_CONFIGURED: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.IDENTITY_CONFLICT: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.INTERNAL: grpc.StatusCode.INTERNAL,
}

RETRY_LATER = (Overloaded, RateLimited, DependencyDown)
"""The errors that say in RetryInfo when to come back."""


async def abort(context: grpc.aio.ServicerContext[bytes, bytes], error: Exception, request_id: str) -> NoReturn:
    """Abort the call with the status of `error`. An unexpected error is logged in full; its text never leaves."""
    if not isinstance(error, SyncbeatError) or error.reason is Reason.INTERNAL:
        _log.error("internal error", exc_info=error)
        error = SyncbeatError(f"internal error; the log has it under request id {request_id}")
    elif error.reason is Reason.DEPENDENCY_DOWN and not isinstance(error, KeyUnknownYet):
        if isinstance(error, DependencyUnfit):
            _log.error("dependency unfit (%s)", error.fault, exc_info=error.__cause__ or error)
        else:
            _log.warning("dependency down", exc_info=error.__cause__ or error)
    status = to_status(error, request_id)
    trailers: list[tuple[str, str | bytes]] = [(_STATUS_KEY, status.SerializeToString())]
    if isinstance(error, RETRY_LATER):
        # Negative stops the client's own retries (gRPC A6), which would come too early; RetryInfo still says when.
        pushback_ms = int(error.retry_after_s * 1000) if error.retry_after_s <= _MAX_PUSHBACK_S else -1
        trailers.append((_PUSHBACK_KEY, str(pushback_ms)))
    await context.abort(STATUS[error.reason], status.message, tuple(trailers))


def to_status(error: SyncbeatError, request_id: str) -> status_pb2.Status:
    """Return the `google.rpc.Status` of an error: ErrorInfo always, BadRequest and RetryInfo where they apply."""
    metadata = _in_both_spellings({**error.metadata, "request_id": request_id})
    packed = [_pack(error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata))]
    if isinstance(error, InvalidRequest):
        packed.append(_pack(_bad_request(error.violations)))
    if isinstance(error, RequestIdReused):
        packed.append(_pack(_bad_request([FieldViolation("request_id", error.message, FieldReason.CONFLICT)])))
    if isinstance(error, EventIdReused):
        packed.append(_pack(_bad_request([FieldViolation("event_id", error.message, FieldReason.CONFLICT)])))
    if isinstance(error, RETRY_LATER):
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(int(error.retry_after_s * 1000))
        packed.append(_pack(error_details_pb2.RetryInfo(retry_delay=delay)))
    message = _truncate(error.message, _MAX_MESSAGE_BYTES)
    return status_pb2.Status(code=STATUS[error.reason].value[0], message=message, details=packed)


def _in_both_spellings(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the metadata by keys in lowerCamelCase, as ErrorInfo wants them, beside those of before."""
    words = {key: key.split("_") for key in metadata}
    return {
        **metadata,
        **{first + "".join(map(str.capitalize, rest)): metadata[key] for key, (first, *rest) in words.items()},
    }


def _bad_request(violations: Sequence[FieldViolation]) -> error_details_pb2.BadRequest:
    bad_request = error_details_pb2.BadRequest()
    for violation in violations[:_MAX_VIOLATIONS]:
        bad_request.field_violations.add(
            field=_truncate(violation.path, _MAX_TEXT_BYTES),
            description=_truncate(violation.description, _MAX_TEXT_BYTES),
            reason=violation.reason,
        )
        if bad_request.ByteSize() > _MAX_VIOLATION_BYTES:
            del bad_request.field_violations[-1]
            break
    return bad_request


def _truncate(text: str, max_bytes: int) -> str:
    return text if len(text) * 4 <= max_bytes else text.encode()[:max_bytes].decode(errors="ignore")


def _pack(message: object) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)  # type: ignore[arg-type]  # the stubs of google.rpc know no Message base
    return packed
