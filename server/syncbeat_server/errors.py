"""The domain error tree. Each class has a stable reason; the wire layer maps it to a status in one table.

Messages are written for the caller: they never hold a driver's text, a secret or another user's data.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar


class Reason(StrEnum):
    """What went wrong, for machines. The values are those of `ErrorReason` in `error_reason.proto`."""

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
    """One bad field of a request: its path (`changes[3].merge_patch_json`) and what is wrong with it."""

    path: str
    description: str


class SyncbeatError(Exception):
    """Root of everything this service raises on purpose."""

    reason: ClassVar[Reason] = Reason.INTERNAL

    def __init__(self, message: str, **metadata: str) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = metadata


class TokenInvalid(SyncbeatError):
    """The access token is missing, malformed, forged or not for this service."""

    reason = Reason.TOKEN_INVALID


class TokenExpired(SyncbeatError):
    """The access token was good and its time is over: refresh it and come back."""

    reason = Reason.TOKEN_EXPIRED


class TokenRevoked(SyncbeatError):
    """The token was good and was taken back, with its session or its user; which of them is not told."""

    reason = Reason.TOKEN_REVOKED


class AccessDenied(SyncbeatError):
    """The caller is known and may not do or see this, whether it exists or not."""

    reason = Reason.ACCESS_DENIED


class NotFound(SyncbeatError):
    """The caller may see it, and it is not there."""

    reason = Reason.NOT_FOUND


class InvalidRequest(SyncbeatError):
    """The request breaks the contract; `violations` names every bad field at once."""

    reason = Reason.INVALID_FIELD

    def __init__(self, *violations: FieldViolation) -> None:
        super().__init__("; ".join(f"{v.path}: {v.description}" for v in violations[:8]))
        self.violations = violations


class RequestIdReused(SyncbeatError):
    """The same request_id came before with other content."""

    reason = Reason.REQUEST_ID_REUSED


class RequestInFlight(SyncbeatError):
    """The first call with this request_id had not ended when this one's time was over."""

    reason = Reason.REQUEST_IN_FLIGHT


class SequenceMismatch(SyncbeatError):
    """A change's `expected_sequence` is not the sequence its key has now."""

    reason = Reason.SEQUENCE_MISMATCH


class RateLimited(SyncbeatError):
    """Over a rate or a quota; the message says which. Come back after `retry_after_s`."""

    reason = Reason.RATE_LIMITED

    def __init__(self, message: str, *, retry_after_s: float = 60.0, **metadata: str) -> None:
        super().__init__(message, **metadata)
        self.retry_after_s = retry_after_s


class Overloaded(SyncbeatError):
    """Shed to protect the others; come back after `retry_after_s`."""

    reason = Reason.OVERLOADED

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineExceeded(SyncbeatError):
    """No time left to do the work within the caller's deadline."""

    reason = Reason.DEADLINE_EXCEEDED


class DependencyDown(SyncbeatError):
    """PostgreSQL or another dependency does not answer; nothing is known to be wrong with the request."""

    reason = Reason.DEPENDENCY_DOWN

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class KeyUnknownYet(DependencyDown):
    """A token's key may have been published since its issuer was asked: nothing is down, and nothing is logged."""


class DependencyUnfit(DependencyDown):
    """A dependency answers and is not as the service needs it; `fault` names what its operators have to mend."""

    fault = ""


class MigrationNeeded(SyncbeatError):
    """The database is older than the code. The message names the command that mends it."""

    reason = Reason.MIGRATION_NEEDED


class NotConfigured(SyncbeatError):
    """This server lacks the settings for what was asked. The message names them."""

    reason = Reason.NOT_CONFIGURED


class MigrationFailed(SyncbeatError):
    """A migration could not be applied; the database is as it was before that file."""


class ConfigurationError(SyncbeatError):
    """A setting is missing, unknown or unsafe. The message names the setting and the fix."""


class EmbeddedUnavailable(SyncbeatError):
    """The embedded stores cannot be started here. The message names the fix."""
