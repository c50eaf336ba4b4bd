"""Explains failed calls by their status and the `google.rpc` details that the server sends with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from syncbeat.v1 import error_reason_pb2

MAY_PASS = frozenset(
    {
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.UNKNOWN,
    }
)
"""The codes of errors that may pass when the call is made again; see `ErrorDetails.may_pass`."""

MAX_EXPIRIES = 8
"""Expired tokens in a row before it is an error: a caller that renews by a slow clock gets a good one in the end."""

# The reasons that a cursor of a scope the caller has left is refused with: in a stream, and in a list to a service.
_LEFT_SCOPE = frozenset(
    {error_reason_pb2.ErrorReason.ERROR_REASON_ACCESS_DENIED, error_reason_pb2.ErrorReason.ERROR_REASON_NOT_FOUND}
)
_DOMAIN = "syncbeat"
_STATUS_KEY = "grpc-status-details-bin"


@dataclass(frozen=True)
class Violation:
    """One field that breaks the contract. `path` is as in `changes[2].key`.

    `reason` is to branch on: the name of a `FieldReason` without its prefix (`REQUIRED`), or what a newer server says;
    empty from one that gives none.
    """

    path: str
    description: str
    reason: str = ""


@dataclass(frozen=True)
class ErrorDetails:
    """The reason and the details of a failed call.

    `reason` is to branch on; ERROR_REASON_UNSPECIFIED if the server gave none (the connection broke), or one that this
    client does not know. `metadata` has the server's `requestId`, and what the reason names. `retry_after_s` is how
    long the server asks to wait, None if it does not. `told` is true if the server gave a reason.
    """

    code: grpc.StatusCode
    reason: error_reason_pb2.ErrorReason.ValueType
    message: str
    metadata: Mapping[str, str]
    violations: tuple[Violation, ...]
    retry_after_s: float | None
    told: bool = False

    @property
    def may_pass(self) -> bool:
        """True if the same call may succeed when it is made again.

        A RESOURCE_EXHAUSTED with a reason of the server's passes. Without one it comes from a limit of gRPC's own, as
        for the size of a message, here or there: the same message would meet it again.
        """
        return self.code in MAY_PASS and (self.told or self.code is not grpc.StatusCode.RESOURCE_EXHAUSTED)

    @property
    def has_expired(self) -> bool:
        """True if the token has expired: with a new one the call may be made again."""
        return self.reason == error_reason_pb2.ErrorReason.ERROR_REASON_TOKEN_EXPIRED

    @property
    def left_scope(self) -> str | None:
        """The scope that was refused because the caller has left it; None for any other error."""
        return self.metadata.get("scope") if self.reason in _LEFT_SCOPE else None


def explain(error: grpc.RpcError) -> ErrorDetails:
    """Return the details of an error that a call raised. Never fails: details that were not sent are empty."""
    failed = cast(grpc.Call, error)  # as both kinds of channels raise it
    info, invalid, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    retry_after_s: float | None = None
    for detail in _status_of(failed).details:
        try:
            detail.Unpack(info)
            detail.Unpack(invalid)
            if detail.Unpack(retry):
                retry_after_s = max(0.0, retry.retry_delay.ToTimedelta().total_seconds())
        except (DecodeError, OverflowError, ValueError):
            continue
    return ErrorDetails(
        code=failed.code(),
        reason=_reason(info),
        message=failed.details() or "",
        metadata=dict(info.metadata),
        violations=tuple(Violation(one.field, one.description, one.reason) for one in invalid.field_violations),
        retry_after_s=retry_after_s,
        told=info.domain == _DOMAIN,
    )


def _status_of(error: grpc.Call) -> status_pb2.Status:
    for key, value in error.trailing_metadata() or ():
        if key == _STATUS_KEY and isinstance(value, bytes):
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:
                break
    return status_pb2.Status()


def _reason(info: error_details_pb2.ErrorInfo) -> error_reason_pb2.ErrorReason.ValueType:
    known = error_reason_pb2.ErrorReason
    name = f"ERROR_REASON_{info.reason}"
    if info.domain != _DOMAIN or name not in known.keys():  # noqa: SIM118  # a wrapper, not a dict
        return known.ERROR_REASON_UNSPECIFIED
    return known.Value(name)
