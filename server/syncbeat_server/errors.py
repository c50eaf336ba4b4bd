"""Defines the domain errors. Each class has a stable reason, which `rpc/pipeline/error_status.py` maps to a status.

Messages are written for the caller: they never hold a driver's text, a secret or another user's data.
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar, NamedTuple


class Reason(StrEnum):
    """The machine-readable reason of an error. The values are those of `ErrorReason` in `error_reason.proto`."""

    TOKEN_INVALID = "TOKEN_INVALID"
    TOKEN_EXPIRED = "TOKEN_EXPIRED"
    TOKEN_REVOKED = "TOKEN_REVOKED"
    ACCESS_DENIED = "ACCESS_DENIED"
    NOT_FOUND = "NOT_FOUND"
    INVALID_FIELD = "INVALID_FIELD"
    REQUEST_ID_REUSED = "REQUEST_ID_REUSED"
    EVENT_ID_REUSED = "EVENT_ID_REUSED"
    REQUEST_IN_FLIGHT = "REQUEST_IN_FLIGHT"
    SEQUENCE_MISMATCH = "SEQUENCE_MISMATCH"
    RATE_LIMITED = "RATE_LIMITED"
    OVERLOADED = "OVERLOADED"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    DEPENDENCY_DOWN = "DEPENDENCY_DOWN"
    MIGRATION_NEEDED = "MIGRATION_NEEDED"
    NOT_CONFIGURED = "NOT_CONFIGURED"
    IDENTITY_CONFLICT = "IDENTITY_CONFLICT"
    INTERNAL = "INTERNAL"


class FieldReason(StrEnum):
    """The machine-readable fault of a field. The values are those of `FieldReason` in `error_reason.proto`."""

    REQUIRED = "REQUIRED"
    TOO_LONG = "TOO_LONG"
    TOO_MANY = "TOO_MANY"
    TOO_DEEP = "TOO_DEEP"
    OUT_OF_RANGE = "OUT_OF_RANGE"
    UNKNOWN_VALUE = "UNKNOWN_VALUE"
    MALFORMED = "MALFORMED"
    FORBIDDEN_CHARACTERS = "FORBIDDEN_CHARACTERS"
    RESERVED = "RESERVED"
    CONFLICT = "CONFLICT"


class TokenFault(StrEnum):
    """The cause of a token's refusal, for the log and a metric; callers learn the `Reason` alone (docs/tokens.md)."""

    NO_CREDENTIALS = "no_credentials"
    NO_BEARER = "no_bearer"
    UNKNOWN_CERTIFICATE = "unknown_certificate"
    MALFORMED = "malformed"
    UNKNOWN_ISSUER = "unknown_issuer"
    UNKNOWN_KEY = "unknown_key"
    SIGNATURE = "signature"
    CLAIM_MISSING = "claim_missing"
    AUDIENCE = "audience"
    ROLE = "role"
    TYPE = "type"
    CLIENT = "client"
    SUBJECT = "subject"
    SESSION = "session"
    TIME = "time"
    EXPIRED = "expired"
    REVOKED = "revoked"
    REFRESH_TOKEN = "refresh_token"
    LINK_TOKEN = "link_token"
    ACK_TOKEN = "ack_token"


class FieldViolation(NamedTuple):
    """One invalid field of a request: its path (`changes[3].merge_patch_json`) and its fault.

    No dataclass, since loading their module costs 10 ms of each health check.
    """

    path: str
    description: str
    reason: FieldReason


class SyncbeatError(Exception):
    """The root of every error that this service raises on purpose. `metadata` goes into ErrorInfo.

    `is_callers_doing`: the caller brought it about, whatever its status says. It counts against no objective, so that
    nobody, authenticated or not, can spend an error budget.
    """

    reason: ClassVar[Reason] = Reason.INTERNAL
    is_callers_doing: ClassVar[bool] = False

    def __init__(self, message: str, **metadata: str) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = metadata


class TokenRefused(SyncbeatError):
    """A token is refused. The message is for its caller; `fault` and the rest are for the operator's log.

    Attributes:
        fault: The cause; None where the token was good before, as when a stream outlives it.
        detail: The cause in words, with the setting that would let the token in. It never holds the token.
        issuer: The configured issuer whose rules refused it, if they did.
    """

    def __init__(self, message: str, fault: TokenFault | None = None, detail: str = "") -> None:
        super().__init__(message)
        self.fault = fault
        self.detail = detail
        self.issuer = ""


class TokenInvalid(TokenRefused):
    """The access token is missing, malformed, forged or not for this service."""

    reason = Reason.TOKEN_INVALID


class TokenExpired(TokenRefused):
    """The access token was valid and has expired: call again with a new one."""

    reason = Reason.TOKEN_EXPIRED


class TokenRevoked(TokenRefused):
    """The token was revoked, with its session or its user; the caller is not told which."""

    reason = Reason.TOKEN_REVOKED


class AccessDenied(SyncbeatError):
    """The caller is authenticated and may not do or see this; the answer does not depend on whether it exists."""

    reason = Reason.ACCESS_DENIED


class NotFound(SyncbeatError):
    """The caller may see the object, and it does not exist."""

    reason = Reason.NOT_FOUND


class InvalidRequest(SyncbeatError):
    """The request breaks the contract; `violations` names every bad field at once."""

    reason = Reason.INVALID_FIELD

    def __init__(self, *violations: FieldViolation) -> None:
        super().__init__("; ".join(f"{v.path}: {v.description}" for v in violations[:8]))
        self.violations = violations


class RequestIdReused(SyncbeatError):
    """The same request_id was used before with other content."""

    reason = Reason.REQUEST_ID_REUSED


class EventIdReused(SyncbeatError):
    """The same event id came before from this source with other content."""

    reason = Reason.EVENT_ID_REUSED


class RequestInFlight(SyncbeatError):
    """The first call with this request_id had not ended by the deadline of this one."""

    reason = Reason.REQUEST_IN_FLIGHT


class SequenceMismatch(SyncbeatError):
    """The `expected_sequence` of a change is not the present sequence of its key."""

    reason = Reason.SEQUENCE_MISMATCH


class RateLimited(SyncbeatError):
    """The caller is over a rate or a quota, which the message names; it may call again after `retry_after_s`."""

    reason = Reason.RATE_LIMITED

    def __init__(self, message: str, *, retry_after_s: float = 60.0, **metadata: str) -> None:
        super().__init__(message, **metadata)
        self.retry_after_s = retry_after_s


_LEAST_RETRY_S = 1.0


def spread_retry_s(unit: float, least_s: float = _LEAST_RETRY_S) -> float:
    """Return the seconds after which a shed call may come again, by a number drawn from 0 to 1.

    Never at once, and spread, so that calls which are shed together do not come back together.
    """
    return least_s * (1.0 + unit)


class Overloaded(SyncbeatError):
    """The call was shed to protect others; it may be made again after `retry_after_s`."""

    reason = Reason.OVERLOADED

    def __init__(self, message: str, *, retry_after_s: float = _LEAST_RETRY_S) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class CallerStalled(Overloaded):
    """The call was ended since its caller neither sends nor reads: its own doing, and no load's."""

    is_callers_doing = True


class DeadlineExceeded(SyncbeatError):
    """The work did not fit into the caller's deadline."""

    reason = Reason.DEADLINE_EXCEEDED


class RequestStalled(DeadlineExceeded):
    """The request itself did not arrive in time."""

    is_callers_doing = True


class DependencyDown(SyncbeatError):
    """PostgreSQL or another dependency does not answer; the request itself may be valid.

    `is_transient`: the same may work a moment later, so that a call which may be repeated is.
    """

    reason = Reason.DEPENDENCY_DOWN
    is_transient: ClassVar[bool] = True

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class CircuitOpen(DependencyDown):
    """A dependency was found to be away, and is looked for: nobody waits for it meanwhile."""

    is_transient = False


class KeyUnknownYet(DependencyDown):
    """A token's key may be newer than the keys fetched from its issuer: nothing is down, so it is not logged."""

    is_transient = False
    is_callers_doing = True  # nearly always: anybody can invent kids, and an issuer rotates its keys once in weeks


class DependencyUnfit(DependencyDown):
    """A dependency answers but is misconfigured for this service; `fault` names the setting its operators must fix."""

    is_transient = False
    fault = ""


class MigrationNeeded(SyncbeatError):
    """The database schema is older than the code. The message names the command that migrates it."""

    reason = Reason.MIGRATION_NEEDED


class NotConfigured(SyncbeatError):
    """This server lacks the settings that the call needs. The message names them."""

    reason = Reason.NOT_CONFIGURED


class IdentityConflict(SyncbeatError):
    """A join would make one person of two, or the call names a user by a subject that is not the user's id."""

    reason = Reason.IDENTITY_CONFLICT


class MigrationFailed(SyncbeatError):
    """A migration could not be applied; the database is as it was before that file."""


class ConfigurationError(SyncbeatError):
    """A setting is missing, unknown or unsafe. The message names the setting and the fix."""


class EmbeddedUnavailable(SyncbeatError):
    """The embedded stores cannot be started here. The message names the fix."""
