"""Defines the domain errors. Each class has a stable reason, which the wire layer maps to a status in one table.

Messages are written for the caller: they never hold a driver's text, a secret or another user's data.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar


class Reason(StrEnum):
    """Names the reasons of errors, for machines. The values are those of `ErrorReason` in `error_reason.proto`."""

    TOKEN_INVALID = "TOKEN_INVALID"
    TOKEN_EXPIRED = "TOKEN_EXPIRED"
    TOKEN_REVOKED = "TOKEN_REVOKED"
    ACCESS_DENIED = "ACCESS_DENIED"
    NOT_FOUND = "NOT_FOUND"
    INVALID_FIELD = "INVALID_FIELD"
    REQUEST_ID_REUSED = "REQUEST_ID_REUSED"
    REQUEST_IN_FLIGHT = "REQUEST_IN_FLIGHT"
    SEQUENCE_MISMATCH = "SEQUENCE_MISMATCH"
    RATE_LIMITED = "RATE_LIMITED"
    OVERLOADED = "OVERLOADED"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    DEPENDENCY_DOWN = "DEPENDENCY_DOWN"
    MIGRATION_NEEDED = "MIGRATION_NEEDED"
    NOT_CONFIGURED = "NOT_CONFIGURED"
    INTERNAL = "INTERNAL"


@dataclass(frozen=True)
class FieldViolation:
    """Violation of a rule by a field of a request: its path (`changes[3].merge_patch_json`) and the fault."""

    path: str
    description: str


class SyncbeatError(Exception):
    """Root of all errors that this service raises on purpose."""

    reason: ClassVar[Reason] = Reason.INTERNAL

    def __init__(self, message: str, **metadata: str) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = metadata


class TokenInvalid(SyncbeatError):
    """The access token is missing, malformed, forged or not for this service."""

    reason = Reason.TOKEN_INVALID


class TokenExpired(SyncbeatError):
    """The access token was valid and has expired: refresh it and call again."""

    reason = Reason.TOKEN_EXPIRED


class TokenRevoked(SyncbeatError):
    """The token was valid and is revoked, with its session or its user; the error does not say which."""

    reason = Reason.TOKEN_REVOKED


class AccessDenied(SyncbeatError):
    """The caller is authenticated and may not do or see this; raised also if it does not exist."""

    reason = Reason.ACCESS_DENIED


class NotFound(SyncbeatError):
    """The object does not exist, and the caller might see it if it did."""

    reason = Reason.NOT_FOUND


class InvalidRequest(SyncbeatError):
    """The request violates the contract; `violations` has every bad field."""

    reason = Reason.INVALID_FIELD

    def __init__(self, *violations: FieldViolation) -> None:
        super().__init__("; ".join(f"{v.path}: {v.description}" for v in violations[:8]))
        self.violations = violations


class RequestIdReused(SyncbeatError):
    """The request_id was used before with other content."""

    reason = Reason.REQUEST_ID_REUSED


class RequestInFlight(SyncbeatError):
    """The first call with this request_id did not end within this call's time."""

    reason = Reason.REQUEST_IN_FLIGHT


class SequenceMismatch(SyncbeatError):
    """The `expected_sequence` of a change is not the present sequence of its key."""

    reason = Reason.SEQUENCE_MISMATCH


class RateLimited(SyncbeatError):
    """The caller exceeds a rate or a quota, which the message names; call again after `retry_after_s`."""

    reason = Reason.RATE_LIMITED

    def __init__(self, message: str, *, retry_after_s: float = 60.0, **metadata: str) -> None:
        super().__init__(message, **metadata)
        self.retry_after_s = retry_after_s


class Overloaded(SyncbeatError):
    """The call was shed to protect others; call again after `retry_after_s`."""

    reason = Reason.OVERLOADED

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineExceeded(SyncbeatError):
    """The caller's deadline leaves no time for the work."""

    reason = Reason.DEADLINE_EXCEEDED


class DependencyDown(SyncbeatError):
    """PostgreSQL or another dependency does not answer; the request itself may be fine."""

    reason = Reason.DEPENDENCY_DOWN

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class KeyUnknownYet(DependencyDown):
    """The token's key may have been published since its issuer was last asked: no outage, so nothing is logged."""


class DependencyUnfit(DependencyDown):
    """A dependency answers but is not in the state that the service needs; `fault` names what operators must fix."""

    fault = ""


class MigrationNeeded(SyncbeatError):
    """The database is older than the code. The message names the command to run."""

    reason = Reason.MIGRATION_NEEDED


class NotConfigured(SyncbeatError):
    """This server lacks the settings that the call needs. The message names them."""

    reason = Reason.NOT_CONFIGURED


class MigrationFailed(SyncbeatError):
    """A migration could not be applied; the database is as it was before that file."""


class ConfigurationError(SyncbeatError):
    """A setting is missing, unknown or unsafe. The message names the setting and the fix."""


class EmbeddedUnavailable(SyncbeatError):
    """The embedded stores cannot be started here. The message names the fix."""
